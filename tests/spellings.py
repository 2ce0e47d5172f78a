"""Texts that state an answer in another spelling, and texts that look as if they did."""

from __future__ import annotations

SAME = """
Unicode, case and layout
fire | ﬁre
efficient | eﬃcient
water | ｗａｔｅｒ
H2O | H₂O
CO2 | CO₂
café | cafe\u0301
Padmé Amidala | Padme Amidala
Skłodowska | SKŁODOWSKA
Straße | STRASSE
Ångström | Angstrom
naïve | naive
Paris | Pa\u200bris
Paris | \u200bParis\ufeff
Paris | \u202bParis\u202c
cooperate | co\u00adoperate
Windows | Windows™
Coca-Cola Zero | Coca-Cola® Zero
Marie Curie | **Marie** _Curie_
card arrival | card_arrival
Marie Curie | Marie\u00a0Curie
Bohr's model | Bohr’s model
Bohr model | Bohr's model
don't | don’t
rock and roll | rock & roll
AT&T | AT & T
alkali-metal | alkali metal
alkali metal | alkali‑metal
The Hague | Hague
the Bahamas | Bahamas
U.S. | US
U.S.A. | USA
e.g. | eg
J.R.R. Tolkien | J. R. R. Tolkien
A.B.C.D.E.F. Tolkien | A. B. C. D. E. F. Tolkien
Scripts
北京 | 首都是北京。
サッカー | ｻｯｶｰです
서울 | 서울은 한국의 수도
กรุงเทพ | เมืองหลวงคือกรุงเทพ
القاهرة | عاصمة مصر هي \u200fالقاهرة\u200f.
مدرسة | مَدْرَسَة
שלום | שָׁלוֹם
Москва | Столица — Москва.
Αθήνα | ΑΘΗΝΑ
5 | ٥
42 | ४२
42 | ４２
1911 | 在1911年
Numbers by value
29 | $29.00
1000 | 1 000
1000 | 1,000
1000 | 1\u00a0000
1000 | 1\u202f000
1000 | 1\u2009000
1000 | 1'000
1000 | 1’000
1000 | 1_000
1000000 | 1 000 000
1000000 | 1.000.000
1,000,000 | 1 million
2500000 | 2.5 million
3 billion | 3,000,000,000
100000 | 1,00,000
1234567 | 12,34,567
1234.5 | 1,234.50
1234.5 | 1 234.5
1234.5 | 1.234,50
3.14 | 3,14
0.5 | 0,500
12345.678 | 12345,678
0.5 | .5
7 | 7.0
7.10 | 7.1
5 | 05
3 | three
12 | Twelve
0 | zero
1 | It has one electron.
0.5 | ½
0.5 | 1/2
2/4 | 1/2
0.75 | ¾
1.5 | 1½
1.5 | 1 1/2
1/3 | ⅓
2/3 | 4/6
6.02e23 | 6.02 × 10²³
6.02e23 | 6.02 x 10^23
6.02e23 | 6.02×10^23
602000 | 6.02E5
1.6e-19 | 1.6 × 10⁻¹⁹
0.001 | 1e-3
0.001 | 1·10^-3
(3,4) | (3, 4)
4 | coordinates (3,4)
-4 | [3,-4]
5 | (-2,5)
3 million | three million people
three million | 3,000,000
-5 | minus five
-5 | It is negative five.
-5 million | minus five million
404 | HTTP 404 500
500 errors | HTTP 404 500 errors
100 | Level 10 100 points
300 | 200 300 and 400
12345678 | 12 345 678
1538 | 1 538
Signs
-5 | −5
-5 | –5
-5 | ﹣5
-5 | －5
-38.8 | −38.80
-38.8 | minus 38.8
-38.8 | negative 38.8
-38.8 | (-38.8)
-0.5 | -½
+5 | 5
5 | +5
±5 | ± 5
±5 | ±5
Units
50% | 50 %
50% | 50 percent
50% | 50 per cent
50% | ５０％
12.5% | 12,5 %
$5 | 5 dollars
$5 | 5 USD
$5 | USD 5
$5 | US$5
$5 | $5.00
$5 | 5$
-$5 | $-5
$1,000 | $1000
$5 million | $5,000,000
$5000000 | 5 million dollars
€5 | 5 €
€5 | 5 euros
€5 | EUR 5
£5 | £ 5
£5 | 5 GBP
¥500 | 500 JPY
50 kg | 50kg
5 kg | 5.0 kg
20 °C | 20°C
20 °C | 20 degrees Celsius
20 °C | 20℃
68 °F | 68 degrees Fahrenheit
90° | 90 degrees
m² | m2
m^2 | m²
10² | 10^2
Dates, times and ranges
5–10 | 5-10
5–10 | 5 to 10
5–10 | 5 - 10
5–10 | from 5 to 10
1914–1918 | 1914—1918
1918 | 1914-1918
1914 | 1914–1918
01.02.2020 | 1/2/2020
2020-01-02 | 2020/1/2
2020 | 01/02/2020
3 May 2020 | 3 May, 2020
10:30 | at 10:30.
19th | the 19th century
Symbols and formulas
C++ | written in C++.
C++ | c++
C# | C#, of course
C# | C♯
.NET | It runs on .NET.
.NET | .net
.py | files end in .py
Node.js | node.js
F# | F#.
A+ | an A+
A- | A-.
Na+ | Na⁺
Fe2+ | Fe²⁺
Cl- | Cl⁻
NaCl | It is NaCl (salt).
H2SO4 | H₂SO₄
CuSO4·5H2O | CuSO₄·5H₂O
[Ar] 3d6 4s2 | [Ar] 3d⁶ 4s²
E = mc² | E=mc^2
E = mc^2 | $E = mc^2$
x > 5 | x>5
x > 5 | so x > 5 holds
x >= 5 | x ≥ 5
x <= 5 | x ≤ 5
x != 5 | x ≠ 5
a -> b | a → b
x + 5 | x+5
3 × 4 | 3 x 4
3 × 4 | 3*4
5 | **5**
5 | $5$
x > 5 | $x > 5$
😀 | 😀 is it
👍 | 👍🏽
∞ | It is ∞.
a.b@x.com | Write to A.B@x.com.
v1.2.3 | v1.2.3
1.2.3 | version 1.2.3.
007 | agent 007
"""


OTHER = """
Words at their boundaries
gold | It is a goldfish.
Krypton | Kryptonite
Lead | misleading
art | artist
Paris | Parisian
Marie Curie | Marie Skłodowska Curie
Marie Curie | Curie, Marie
vitamin A | vitamin C
vitamin A | vitamin
not | No.
No one | one
x.com | a.b@x.com
Scripts
東京 | 京東
がん | かん
й | и
سلام | كلام
Numbers
7 | 1.7
7 | 17
7 | 7.5
7 | 71
7 | 0.7
7 | 7,500
1 | 1 000
1 | 1,000
000 | 1 000
1 | 1.000.000
1 | one of them
1 | No one knows.
1 | the one that is known
1 | 1/2
2 | 1/2
5 | ½
1/2 | 1/3
1/2 | 12
5 | 5 million
5 million | 5 billion
5 million | 5
6.02e23 | 6.02e22
6.02e23 | 6.02
3.14 | 314
3,14 | 3,15
1.234 | 1,234
1,2,3 | 1,2,4
12 | 1,2,3
1.2 | 1.2.3
2.5 | (2,5)
2.5 | [2,5]
-2.5 | (-2,5)
1 | 1\u00a0234
234 | 1\u202f234
345 | 12 345 678
5 million | forty-five million
5 million | forty five million
-20 | minus twenty-five
5 | minus five
3 | three million
000 | 1 000
1234 | 234
1.2.3 | 1.2.4
007 | 7
10² | 102
102 | 10²
1868 | 1886
9th | 19th
2 | H2O
2 | 2,4-D
2 | CO₂
Signs
5 | -5
5 | −5
5 | –5
5 | minus 5
-5 | 5
-5 | +5
-38.8 | 38.8
-10 | 5-10
-1918 | 1914-1918
±5 | 5
Units
50% | 50 kg
50% | 50
50% | 500%
50 kg | 50%
50 kg | 50
50 kg | 50 g
50 kg | 150 kg
$5 | €5
$5 | 5
$5 | £5
$5 | 5 euros
$5 | $50
$5 | $5.50
$5 | -$5
$5 | $5 million
€5 | $5
20 °C | 20 °F
20 °C | -20 °C
m² | m³
Dates, times and ranges
5–10 | 5 or 10
5–10 | 5, 10
5–10 | 5–11
5–10 | 15–10
01/02/2020 | 01/02/2021
10:30 | 10:31
10:30 | 10 and 30
Symbols and formulas
C | C++
C | C#
C++ | C
C++ | C#
C# | C
C# | C++
F# | F
.NET | net
.py | py
A+ | A
A- | A
A | A-
A+ | A-
Na+ | Na
Fe2+ | Fe3+
Fe2+ | Fe2
Fe | Fe2+
Cl- | Cl
Au | AuCl3
Au | au
He | he
CO | Co
Co | CO
R | r
R | are
pH | PH
x > 5 | x < 5
x > 5 | x >= 5
x > 5 | x 5
x > 5 | x = 5
x = 5 | x ≠ 5
x + 5 | x - 5
x - 5 | x + 5
3 × 4 | 3 + 4
3 × 4 | 34
a -> b | a <- b
AT&T | ATT
😀 | 😞
∞ | 8
+ | -
"""
