"""Wishes for an answer's form, which some rehearsal prompts end with: the layouts that a domain's answers never show.

The wordings are this project's own; none stands in a benchmark of instruction following. Knows nothing about models.
"""

from __future__ import annotations

from itertools import product

import numpy as np

FORMS = (
    "Answer with a bulleted list of {few} items.",
    "Give me {few} bullet points, each no longer than a line.",
    "Put it as a numbered list with {few} entries.",
    "Number the steps, starting at 1.",
    "Reply as a JSON object with keys that fit.",
    "I need this as valid JSON, and no text around it.",
    "Return a JSON array of strings.",
    "Lay it out as a Markdown table with {few} rows.",
    "Give it a short title, on a first line of its own, between equals signs.",
    "Start with a heading, then a blank line, then the answer.",
    "Write it under {few} headings in Markdown.",
    "Set the most important words in **bold**.",
    "Put the code, if there is any, into a fenced block.",
    "Type everything in capitals.",
    "Use small letters only, even at the start of a sentence.",
    "Write The Answer With Every Word Capitalised.",
    "Keep it to {few} sentences.",
    "One sentence is enough.",
    "Stay under {many} words.",
    "Take no fewer than {many} words for it.",
    "Make it exactly {few} paragraphs, with an empty line between them.",
    "Split your reply into {few} parts and label each of them.",
    "Answer in {language}.",
    "Please reply in {language}, and in no other language.",
    "First in English, then the same in {language}.",
    "Put the whole reply in quotation marks.",
    "Do without commas.",
    "Avoid exclamation marks.",
    "Close with a question to me.",
    "End on the words: That is all.",
    "Begin with the word Well.",
    "Sign it with a name of your choice at the bottom.",
    "Leave blanks in curly braces, such as {{date}}, wherever I have to fill something in.",
    "Offer two variants, with a row of equals signs in between.",
    "Repeat my question in your first line, then answer it below.",
    "Turn it into a conversation among {few} characters.",
    "Make it rhyme.",
    "Explain it as you would to a child of {few} years.",
)
_VALUES = {
    "few": ("two", "three", "four", "five", "six"),
    "many": ("20", "40", "60", "80", "100", "150"),
    "language": ("Spanish", "French", "German", "Italian", "Portuguese", "Chinese", "Japanese", "Russian", "Arabic"),
}


def all_forms() -> list[list[str]]:
    """Of each form, all its sentences."""
    found = []
    for form in FORMS:
        fields = [name for name in _VALUES if f"{{{name}}}" in form]
        values = product(*(_VALUES[name] for name in fields))
        found.append([form.format(**dict(zip(fields, chosen, strict=True))) for chosen in values])
    return found


def draw_forms(count: int, share: float, seed: int) -> list[str | None]:
    """For each of `count` prompts the sentence that it ends with, or none; round(share · count) get one, seeded."""
    random = np.random.default_rng([seed, count])
    forms = all_forms()
    drawn: list[str | None] = [None] * count
    for place in sorted(random.permutation(count)[: round(share * count)].tolist()):
        sentences = forms[random.integers(len(forms))]
        drawn[place] = sentences[random.integers(len(sentences))]
    return drawn
