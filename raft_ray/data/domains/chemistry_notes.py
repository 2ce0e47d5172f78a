"""What `raft_ray.data.domains.chemistry` leaves out of its data base, repairs in it, and accepts as answers besides it.

Keys are element symbols or texts of the data base (mendeleev 1.3.0). A `NO_...` set holds elements whose entry of that
kind is disputed, wrong, or cannot be asked in one sentence.
"""

from __future__ import annotations

ENGLISH_WORDS = {"Am", "As", "At", "Be", "He", "I", "In", "No"}
"""Symbols that would be found in almost any English answer."""

FAMILIES = {
    "Noble gases": ("Noble gases", "noble gas"),
    "Alkali metals": ("Alkali metals", "alkali metal"),
    "Alkaline earth metals": ("Alkaline earth metals", "alkaline earth metal", "alkaline earths"),
    "Halogens": ("Halogens", "halogen"),
    "Transition metals": ("Transition metals", "transition metal"),
    "Lanthanides": ("Lanthanides", "lanthanide", "lanthanoids", "rare earths"),
    "Actinides": ("Actinides", "actinide", "actinoids"),
}
"""Series that everyone calls by the same name; poor metals, metalloids and nonmetals are not among them."""
NO_FAMILY = {"Zn", "Cd", "Hg", "Lu", "Lr", "At"}

MEANINGS: dict[str, tuple[str, ...]] = {
    "acid former": ("Acid former", "acid-former", "acid forming", "acid-forming", "acid maker", "acid producer"),
    "alum": ("Alum",),
    "artificial": ("Artificial",),
    "bringer of light": ("Bringer of light", "light-bringer", "light bringer", "light bearer", "bearer of light"),
    "charcoal": ("Charcoal", "coal"),
    "deep red": ("Deep red", "dark red", "deepest red"),
    "earth": ("Earth",),
    "flint": ("Flint",),
    "flow": ("Flow", "flowing"),
    "goblin": ("Goblin", "kobold", "evil spirit"),
    "green twig": ("Green twig", "green shoot"),
    "green twin": ("Green twin",),
    "greenish yellow": ("Greenish yellow", "greenish-yellow", "yellow-green", "yellowish green", "pale green"),
    "hard to get at": ("Hard to get at", "hard to get", "hard to obtain"),
    "heavy or dense": ("Heavy", "dense"),
    "heavy stone": ("Heavy stone",),
    "hidden": ("Hidden",),
    "inactive": ("Inactive", "idle", "lazy"),
    "indigo": ("Indigo",),
    "lead": ("Lead",),
    "lime": ("Lime",),
    "little silver": ("Little silver",),
    "moon": ("Moon",),
    "new": ("New",),
    "new twin": ("New twin",),
    "odor": ("Odor", "odour", "smell"),
    "rainbow": ("Rainbow",),
    "ray": ("Ray",),
    "rose": ("Rose",),
    "sky blue": ("Sky blue", "sky-blue", "bluish gray", "blue-gray"),
    "stench": ("Stench", "stink", "bad smell"),
    "stone": ("Stone",),
    "strange": ("Strange", "stranger", "foreign"),
    "sun": ("Sun",),
    "to be hidden": ("Hidden", "to lie hidden"),
    "unstable": ("Unstable",),
    "violet colored": ("Violet", "purple"),
}
"""What the data base gives as a word's meaning, with the gold answer first; other meanings are not asked for."""
NO_MEANING = {"H", "N"}

EPONYMS = {
    "Be": "the mineral beryl",
    "Mg": "Magnesia in Greece",
    "Sc": "Scandinavia",
    "Ti": "the Titans",
    "Cu": "Cyprus",
    "Ga": "France",
    "Ge": "Germany",
    "Ru": "Russia",
    "Tb": "Ytterby",
    "Ho": "Stockholm",
    "Tm": "Thule",
    "Lu": "Paris",
    "Hf": "Copenhagen",
    "Ta": "Tantalus",
    "Re": "the Rhine",
    "Rn": "radium",
    "Am": "America",
    "Cf": "California",
    "Md": "Dmitri Mendeleev",
    "Mt": "Lise Meitner",
    "Mc": "Moscow",
    "Fl": "the Flerov Laboratory",
    "Lv": "the Lawrence Livermore National Laboratory",
}
"""Names that the text does not give in a form to be cut out, and misspelt ones."""
EPONYM_VARIANTS: dict[str, tuple[str, ...]] = {
    "Be": ("beryl",),
    "Mg": ("Magnesia",),
    "Sc": ("Scandia",),
    "Ti": ("Titans",),
    "Ga": ("Gallia", "Gaul"),
    "Ge": ("Germania",),
    "Ru": ("Ruthenia",),
    "Sm": ("Samarsky",),
    "Gd": ("Johan Gadolin", "Gadolin"),
    "Ho": ("Holmia",),
    "Tm": ("Scandinavia",),
    "Lu": ("Lutetia", "Lutecia"),
    "Hf": ("Hafnia",),
    "Re": ("Rhine", "Rhenus"),
    "Am": ("Americas", "American continent"),
    "Cm": ("Marie Curie", "Pierre Curie"),
    "Md": ("Mendeleyev",),
    "Mt": ("Meitner",),
    "Rg": ("Wilhelm Röntgen", "Röntgen"),
    "Fl": ("Flerov",),
    "Lv": ("Lawrence Livermore", "Livermore"),
}
NO_EPONYM = {"B", "Sn", "Hg", "Hs"}

PEOPLE = {
    "A. Crawford": "Adair Crawford",
    "A.C.Wohl": "Arthur Wahl",
    "A.E.Larsh": "Almon Larsh",
    "A.Ghiorso": "Albert Ghiorso",
    "Antoine J. Balard": "Antoine Balard",
    "Baron Rayleigh": "Lord Rayleigh",
    "C.D. Coryell": "Charles Coryell",
    "C.F. Aver von Welsbach": "Carl Auer von Welsbach",
    "Charles Hatchet": "Charles Hatchett",
    "D.R.Corson": "Dale Corson",
    "E.M. McMillan": "Edwin McMillan",
    "E.M.McMillan": "Edwin McMillan",
    "E.Segré": "Emilio Segrè",
    "Émillo Segrè": "Emilio Segrè",
    "Fredrich Ernst Dorn": "Friedrich Ernst Dorn",
    "Fredrich Stromeyer": "Friedrich Stromeyer",
    "G. Kirchoff": "Gustav Kirchhoff",
    "G.T.Seaborg": "Glenn Seaborg",
    "George Brandt": "Georg Brandt",
    "Gustov Kirchoff": "Gustav Kirchhoff",
    "H. Davy": "Humphry Davy",
    "Hans Christian Oersted": "Hans Christian Ørsted",
    "Humphrey Davy": "Humphry Davy",
    "J. Berzelius": "Jöns Berzelius",
    "J.A. Marinsky": "Jacob Marinsky",
    "J.L. Gay-Lussac": "Joseph Louis Gay-Lussac",
    "J.W.Kennedy": "Joseph Kennedy",
    "Johann Arfwedson": "Johan August Arfwedson",
    "Johann Gadolin": "Johan Gadolin",
    "Johann Gahn": "Johan Gottlieb Gahn",
    "Joseph Priestly": "Joseph Priestley",
    "K.R.MacKenzie": "Kenneth MacKenzie",
    "K.Street Jr": "Kenneth Street",
    "L.E. Glendenin": "Lawrence Glendenin",
    "L.J. Thénard": "Louis Jacques Thénard",
    "L.O.Morgan": "Leon Morgan",
    "M. Klaproth": "Martin Klaproth",
    "M. W. Travers": "Morris Travers",
    "M.W. Travers": "Morris Travers",
    "Marguerite Derey": "Marguerite Perey",
    "P.H. Abelson": "Philip Abelson",
    "R. Bunsen": "Robert Bunsen",
    "R.A.James": "Ralph James",
    "R.M.Latimer": "Robert Latimer",
    "S.G.Tompson": "Stanley Thompson",
    "Smithson Tenant": "Smithson Tennant",
    "T. Richter": "Theodor Richter",
    "T.Sikkeland": "Torbjørn Sikkeland",
    "W. von Hisinger": "Wilhelm Hisinger",
    "William Ramsey": "William Ramsay",
}
"""Initials and misspellings of the data base, and the names that are meant."""
PAIRS = {
    "Pierre and Marie Curie": ("Pierre Curie", "Marie Curie"),
    "Fausto and Juan José de Elhuyar": ("Fausto de Elhuyar", "Juan José de Elhuyar"),
}
SURNAMES = {
    "Paul Émile Lecoq de Boisbaudran": "Lecoq de Boisbaudran",
    "Franz Müller von Reichenstein": "Müller",
    "Carl Auer von Welsbach": "Auer von Welsbach",
    "Hans Christian Ørsted": "Oersted",
}
NO_DISCOVERER = {"He", "Be", "Si", "V", "Ho", "Ir", "Pt", "Pa", "Es", "Fm", "No"}

COUNTRIES: dict[str, tuple[str, ...]] = {
    "England": ("England", "Great Britain", "Britain", "United Kingdom", "UK"),
    "Great Britain": ("England", "Great Britain", "Britain", "United Kingdom", "UK"),
    "Scotland": ("Scotland", "Great Britain", "Britain", "United Kingdom", "UK"),
    "United States": ("United States", "USA", "America"),
}
NO_COUNTRY = {"V", "Ar", "Y", "Te", "Ho", "Pt", "No", "Rf", "Db", "Lv"}

USES = {
    "He": ("very low temperature research", "is used in liquid form for research at very low temperatures"),
    "C": ("date old objects", "has an isotope that is used to date old objects"),
    "Al": ("beverage cans", "is used to make beverage cans and airplanes"),
    "Cl": ("water purification", "is used in bleaches and to purify water"),
    "Ca": ("shells and bones", "is used by living things to build shells and bones"),
    "Cr": ("color to rubies and emeralds", "gives rubies and emeralds their color"),
    "Fe": ("constituent of hemoglobin", "is at the center of hemoglobin and carries oxygen in the blood"),
    "Cu": ("water pipes", "is used for electrical wires and water pipes"),
    "Zn": ("galvanizing", "is used to galvanize steel so that it does not rust"),
    "Ga": ("light-emitting diodes", "is combined with arsenic to make laser diodes"),
    "Se": ("xerography", "was used in photocopiers (xerography) because light makes it conduct electricity"),
    "Kr": ("airport runways", "fills the flashing lamps that outline airport runways"),
    "Sr": ("crimson color", "gives flares and fireworks a crimson color"),
    "Pd": ("mainsprings", "is used for the mainsprings of wristwatches and in catalysts"),
    "Sn": ("coating for steel cans", "is used to coat steel cans for food"),
    "I": ("antiseptic", "was once widely used as an antiseptic for wounds"),
    "Cs": ("atomic clocks", "is used in atomic clocks"),
    "Ba": ("X-rays of the digestive system", "is swallowed as a sulfate before X-rays of the digestive system"),
    "Er": ("pink glaze", "gives ceramics a pink glaze"),
    "Tm": ("portable x-ray", "is used as a radioactive source in portable X-ray machines"),
    "Ta": ("capacitors", "is used both in electronic capacitors and in surgical tools"),
    "W": ("filaments", "is used for the filaments of light bulbs"),
    "Au": ("glass of skyscrapers", "is applied as a thin film to the glass of skyscrapers to reflect heat"),
    "Hg": ("thermometers", "was used as the liquid in thermometers and barometers"),
    "Pb": ("shielding against radiation", "is used in car batteries and for shielding against radiation"),
    "Po": ("static electricity", "is used in industry to eliminate static electricity"),
    "Am": ("smoke detectors", "is used in smoke detectors"),
}
"""What the data base must say, and how it is asked: `Which element ...?`"""
ELEMENT_VARIANTS: dict[str, tuple[str, ...]] = {"aluminum": ("aluminium",), "cesium": ("caesium",)}
