"""What a reasoning model writes before its answer, and how to leave it out.

Rules on text only. Chat templates often open the block themselves, so that a text has only its end; a token limit
leaves only its beginning.
"""

from __future__ import annotations

import re

_NAMES = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"
_BLOCKS = [
    (re.compile(begin, re.IGNORECASE), re.compile(end, re.IGNORECASE))
    for begin, end in (
        (rf"<\s*{_NAMES}\s*>", rf"<\s*/\s*{_NAMES}\s*>"),
        (r"\[think\]", r"\[/think\]"),
        (r"◁think▷", r"◁/think▷"),
        (r"<\|start_thinking\|>", r"<\|end_thinking\|>"),
        (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
        # gpt-oss: its other channels are for itself and its tools.
        (r"<\|channel\|>(?:analysis|commentary)", r"<\|channel\|>final(?:<\|message\|>)?"),
    )
]
# The same channels where special tokens were dropped in decoding.
_PLAIN_CHANNELS = re.compile(r"\A\s*analysis.*?assistantfinal", re.DOTALL)
_WRAPPED = re.compile(
    r"\A<answer>(.*?)(?:</answer>)?\Z|\A<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\Z", re.DOTALL
)


def without_thinking(text: str) -> str:
    """`text` without its blocks of thinking, stripped; empty where it is nothing else. A block that only ends took the
    text from its beginning, one that only begins takes it to its end. An answer that is wrapped as such after the
    thinking is unwrapped."""
    answer = _PLAIN_CHANNELS.sub("", text)
    for begin, end in _BLOCKS:
        answer = _without(answer, begin, end)
    answer = answer.strip()
    if answer != text.strip() and (wrapped := _WRAPPED.match(answer)):
        answer = (wrapped.group(1) or wrapped.group(2) or "").strip()
    return answer


def begins_with_thinking(text: str) -> bool:
    """Whether the first thing in `text` is a block of thinking, or the end of an empty one."""
    return any(mark.match(text.lstrip()) for block in _BLOCKS for mark in block)


def open_block(text: str) -> tuple[str, str] | None:
    """The marker of a block of thinking that `text` begins and does not end, and the marker that ends it; or none."""
    for begin, end in _BLOCKS:
        marks = [(match.start(), match.group()) for match in begin.finditer(text)]
        ends = [match.start() for match in end.finditer(text)]
        if marks and (not ends or ends[-1] < marks[-1][0]):
            marker = marks[-1][1]
            closing = re.sub("start|begin", "end", marker) if "|" in marker else marker[0] + "/" + marker[1:]
            return marker, closing
    return None


def _without(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> str:
    """`text` without what stands between `begin` and `end`, blocks inside blocks included."""
    kept, depth, place = "", 0, 0
    marks = sorted(
        [(match.start(), match.end(), 1) for match in begin.finditer(text)]
        + [(match.start(), match.end(), -1) for match in end.finditer(text)]
    )
    for start, stop, step in marks:
        if step > 0:
            kept += text[place:start] if depth == 0 else ""
            depth += 1
        elif depth > 0:
            depth -= 1
        else:
            kept = ""
        place = stop
    return kept + text[place:] if depth == 0 else kept
