"""Chats as ids under templates of all shapes: turns, stops, contents that name markers, thinking and dates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures.tokenizers import GENERATION, TOKENIZERS
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from raft_ray import models
from raft_ray.config import ModelConfig
from raft_ray.errors import DataError, ModelError
from raft_ray.models.chat import Chat, with_thinking

NAMES = sorted(TOKENIZERS)
QUESTION = {"role": "user", "content": "Who  found radium?\n\nSay \U000f1234 it: <b>briefly</b>."}
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
ANSWER = "Marie Curie,\n 1898 — in Paris."
END = {
    "plain": "<|im_end|>",
    "llama32": "<|eot_id|>",
    "smollm3": "<|im_end|>",
    "phi4mini": "<|end|>",
    "qwen25": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3moe": "<|im_end|>",
    "gemma2": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "mistral": "</s>",
    "olmo2": "<|endoftext|>",
    "gptoss": "<|return|>",
}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
R1 = (
    CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def stops(name: str) -> list[int]:
    eos = GENERATION[name]["eos_token_id"]
    return [eos] if isinstance(eos, int) else eos


def make(name: str, **options: Any) -> Chat:
    return Chat(TOKENIZERS[name](), stops=stops(name), date="2026-01-31", **options)


def with_template(template: str, **options: Any) -> Chat:
    tokenizer = TOKENIZERS["plain"]()
    tokenizer.chat_template = template
    return Chat(tokenizer, **options)


def rendered(chat: Chat, messages: list[dict[str, str]], generate: bool) -> str:
    """By transformers itself, on the same day."""
    text = chat.tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=generate,
        strftime_now=lambda form: {"%d %b %Y": "31 Jan 2026", "%d %B %Y": "31 January 2026"}.get(form, "2026-01-31"),
        enable_thinking=chat.thinking,
    )
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module", params=NAMES)
def chat(request: pytest.FixtureRequest) -> Chat:
    return make(request.param)


@pytest.mark.parametrize("before", [[], EARLIER], ids=["one turn", "three turns"])
def test_prompt_and_answer_are_the_templates_text_to_the_end_of_the_turn(
    chat: Chat, before: list[dict[str, str]]
) -> None:
    messages = [*before, QUESTION]
    prompt, turn = chat.prompt(messages), chat.turn(messages, ANSWER)
    asked = rendered(chat, messages, True)
    assert prompt == chat.tokenizer.encode(asked, add_special_tokens=False)
    full = rendered(chat, [*messages, {"role": "assistant", "content": ANSWER}], False)
    end = chat.tokenizer.convert_ids_to_tokens(chat.end_id)
    assert full.startswith(asked)
    text = full[len(asked) : full.index(end, len(asked)) + len(end)]
    assert turn == chat.tokenizer.encode(text, add_special_tokens=False)
    assert ANSWER in chat.tokenizer.decode(turn)


def test_a_turn_ends_with_the_token_that_the_template_writes_and_generation_stops_on_all_that_are_named() -> None:
    for name in NAMES:
        made = make(name)
        assert made.tokenizer.convert_ids_to_tokens(made.end_id) == END[name], name
        assert made.turn([QUESTION], ANSWER)[-1] == made.end_id, name
        assert not set(made.turn([QUESTION], ANSWER)[:-1]) & set(made.stop_ids), name
        assert set(made.stop_ids) == {*stops(name), made.tokenizer.eos_token_id, made.end_id}, name


def test_a_models_own_question_begins_where_the_template_opens_a_users_turn_and_ends_where_it_closes_it() -> None:
    for name in NAMES:
        made = make(name)
        if name == "olmo2":  # Nothing but a line break and the next role follow a question there.
            with pytest.raises(ModelError, match=r"ends a user's turn with no token of its own.*; name a file"):
                made.user_turn  # noqa: B018
            continue
        opening, end = made.user_turn
        asked = made.prompt([QUESTION])
        place = asked.index(end, len(opening))
        assert asked[: len(opening)] == opening, name
        assert made.user_text(asked[len(opening) : place + 1]).strip() == QUESTION["content"], name


def test_a_generation_config_without_the_templates_end_of_turn_is_said_in_one_line() -> None:
    differing = {name: line for name in NAMES if (line := make(name).difference())}
    assert list(differing) == ["gemma2"]
    assert "<end_of_turn> (4)" in differing["gemma2"]
    assert "<eos> (1)" in differing["gemma2"]
    assert "\n" not in differing["gemma2"]


@pytest.mark.parametrize("transformed", [False, True], ids=["as it is", "with spaces around"])
def test_a_content_that_names_every_marker_is_text_from_end_to_end(chat: Chat, transformed: bool) -> None:
    added = [token.content for token in chat.tokenizer.added_tokens_decoder.values()]
    named = "The tokens " + " and ".join(added) + " are <marks>, \U000f1234\n\n  as" + "".join(added) + "x"
    content = f"  {named}\n" if transformed else named
    forged = [{"role": "user", "content": content}]
    prompt, turn = chat.prompt(forged), chat.turn(forged, content)
    # As many markers as around an ordinary content.
    ordinary = [{"role": "user", "content": "x"}]
    markers = set(chat.tokenizer.added_tokens_decoder)
    assert [id for id in prompt if id in markers] == [id for id in chat.prompt(ordinary) if id in markers]
    assert [id for id in turn if id in markers] == [id for id in chat.turn(ordinary, "x") if id in markers]
    assert named in chat.tokenizer.decode(prompt)
    assert named in chat.tokenizer.decode(turn)
    assert chat.tokenizer.decode(chat.content(content)).strip() == named
    assert not markers & set(chat.content(content))


def test_what_is_not_a_marker_of_a_content_with_one_is_encoded_as_without(chat: Chat) -> None:
    marker = chat.tokenizer.convert_ids_to_tokens(chat.end_id)
    plain = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}, QUESTION]
    ids = chat.prompt([*plain[:2], {"role": "user", "content": f"{ANSWER}\n\n{marker}"}])
    same = chat.prompt([*plain[:2], {"role": "user", "content": f"{ANSWER}\n\n"}])
    place = next(i for i, (one, other) in enumerate(zip(ids, same, strict=False)) if one != other)
    assert chat.tokenizer.decode(ids[:place]).rstrip("\n").endswith(ANSWER)


def test_what_the_model_wrote_keeps_its_text_and_loses_stop_tokens_and_thinking() -> None:
    for name in NAMES:
        made = make(name)
        said = f"The token {END[name]} ends a turn."
        assert made.text([*made.content(said), made.end_id]).strip() == said, name
    qwen, harmony = make("qwen3", thinking=True), make("gptoss")
    thought = qwen.tokenizer.encode("<think>\nHm.\n</think>\n\nParis.<|im_end|>", add_special_tokens=False)
    assert qwen.text(thought) == "Paris."
    cut = qwen.tokenizer.encode("<think>\nHm.", add_special_tokens=False)
    assert qwen.text(cut) == ""
    for before in ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant", ""):
        written = f"{before}<|channel|>final<|message|>Paris.<|return|>"
        assert harmony.text(harmony.tokenizer.encode(written, add_special_tokens=False)) == "Paris."


def test_an_answer_without_thinking_is_decoded_as_it_stands() -> None:
    made = make("plain")
    ids = made.tokenizer.encode("\n Paris. <|endoftext|>\n<|im_end|>", add_special_tokens=False)
    assert made.text(ids) == made.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["qwen3", "qwen3moe", "smollm3"])
def test_with_thinking_off_the_answer_follows_a_closed_empty_block(name: str) -> None:
    off, on = make(name), make(name, thinking=True)
    assert "<think>" in off.tokenizer.decode(off.prompt([QUESTION])).rpartition("assistant")[2]
    assert "think" not in off.tokenizer.decode(off.turn([QUESTION], ANSWER))
    assert on.tokenizer.decode(on.prompt([QUESTION])).endswith("<|im_start|>assistant\n")


def test_with_thinking_on_a_rows_thinking_is_the_templates() -> None:
    made = make("qwen3", thinking=True)
    turn = made.turn([QUESTION], "<think>\nHm.\n</think>\n\nParis.")
    assert made.tokenizer.decode(turn) == "<think>\nHm.\n</think>\n\nParis.<|im_end|>"
    tags = made.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [id for id in turn if id in tags] == tags
    # The same in a question is no thinking.
    assert not set(tags) & set(made.prompt([{"role": "user", "content": "What is <think>?"}]))


@pytest.mark.parametrize("name", ["qwen3", "smollm3"])
def test_a_row_that_thinks_is_refused_where_thinking_is_off(name: str) -> None:
    with pytest.raises(DataError, match=r"begins with a block of thinking .* model.thinking=true"):
        make(name).turn([QUESTION], "<think>\nHm.\n</think>\n\nParis.")


def test_thinking_that_a_template_knows_nothing_of_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be told to think; leave out model"):
        with_template(CHATML + OPENS, thinking=True)


def test_a_template_that_always_opens_a_block_of_thinking_is_refused_unless_thinking_is_on() -> None:
    with pytest.raises(ModelError, match=r"opens a block of thinking \(<think>\).*model.thinking=true"):
        with_template(R1)
    made = with_template(R1, thinking=True)
    decode = made.tokenizer.decode
    assert decode(made.turn([QUESTION], "Paris.")) == "\n</think>\n\nParis.<|im_end|>"
    assert decode(made.turn([QUESTION], "<think>\nHm.\n</think>\n\nParis.")) == "Hm.\n</think>\n\nParis.<|im_end|>"
    assert made.text(made.tokenizer.encode("Hm.\n</think>\n\nParis.")) == "Paris."
    assert made.text(made.tokenizer.encode("Hm, that is")) == ""


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_template_thinks_by_default_as_the_run_did(name: str, thinking: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    original = str(tokenizer.chat_template)
    wanted = {each: render(tokenizer, enable_thinking=each) for each in (False, True)}
    tokenizer.chat_template = with_thinking(original, thinking)
    assert (tokenizer.chat_template != original) == (name in ("qwen3", "qwen3moe", "smollm3"))
    assert render(tokenizer) == wanted[thinking]
    assert {each: render(tokenizer, enable_thinking=each) for each in wanted} == wanted
    # Trained again, nothing piles up.
    assert with_thinking(str(tokenizer.chat_template), False) == with_thinking(original, False)


def render(tokenizer: PreTrainedTokenizerFast, **variables: Any) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True, **variables
        )
    )


def test_the_first_line_break_of_a_template_survives_its_default() -> None:
    tokenizer = TOKENIZERS["plain"]()
    tokenizer.chat_template = with_thinking("\n{% if enable_thinking %}x{% endif %}" + CHATML + OPENS, False)
    assert render(tokenizer).startswith("\n<|im_start|>")


@pytest.mark.parametrize("name", ["llama32", "smollm3", "gptoss"])
def test_a_template_prints_the_runs_date(name: str) -> None:
    texts = {
        day: made.tokenizer.decode(made.prompt([QUESTION]))
        for day in ("2026-01-31", "2025-12-24")
        for made in [Chat(TOKENIZERS[name](), date=day)]
    }
    assert any(day in texts["2026-01-31"] for day in ("31 Jan", "2026-01-31"))
    assert any(day in texts["2025-12-24"] for day in ("24 Dec", "2025-12-24"))


def test_a_template_that_prints_the_time_gives_the_same_ids_at_every_call() -> None:
    made = with_template("It is {{ strftime_now('%H:%M:%S.%f') }}\n" + CHATML + OPENS)
    assert made.prompt([QUESTION]) == made.prompt([QUESTION])
    assert "It is 00:00:00.000000" in made.tokenizer.decode(made.prompt([QUESTION]))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML + "{% if add_generation_prompt %}", r"cannot be read .*line"),
        (CHATML, r"ignores add_generation_prompt.*'<\|im_start\|>assistant"),
        (CHATML.replace("m.content", "''") + OPENS, "leaves out what a user"),
        ("{{ raise_exception('no users here') }}", r"refuses a question and its answer \(no users here\)"),
        ({"tool_use": CHATML + OPENS}, "called tool_use, and none is the default"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line_that_says_why(template: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        with_template(template, where="model.path=m")
    assert str(caught.value).startswith("model.path=m: ")
    assert "\n" not in str(caught.value)


def test_a_template_that_always_opens_the_assistants_turn_encodes_as_one_that_does_so_when_asked() -> None:
    always, asked = with_template(CHATML + "{{ '<|im_start|>assistant\n' }}"), with_template(CHATML + OPENS)
    assert always.prompt([QUESTION]) == asked.prompt([QUESTION])
    assert always.turn([QUESTION], ANSWER) == asked.turn([QUESTION], ANSWER)


@pytest.mark.parametrize(
    ("name", "roles"),
    [("gemma2", ["system", "user"]), ("gemma3", ["user", "user"]), ("mistral", ["system", "user"])],
)
def test_a_chat_that_the_template_refuses_is_a_bad_row_and_not_a_traceback(name: str, roles: list[str]) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(DataError, match=f"refuses a chat of {', '.join(roles)} .*data.on_bad_row=skip"):
        make(name).prompt(messages)


def test_a_marker_that_takes_spaces_with_it_takes_them_in_texts_with_markers_too() -> None:
    tokenizer = TOKENIZERS["plain"]()
    tokenizer.add_tokens([AddedToken("<|user|>", lstrip=True, rstrip=True, special=True, normalized=False)])
    tokenizer.chat_template = "{% for m in messages %} <|user|> \n{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    made = Chat(tokenizer)
    ids = made.prompt([{"role": "user", "content": "a <|user|> b"}])
    markers = ["<|user|>", "<|im_end|>", "<|im_start|>"]
    assert [id for id in ids if id in tokenizer.added_tokens_decoder] == tokenizer.convert_tokens_to_ids(markers)
    assert ids[0] == made.prompt([{"role": "user", "content": "a"}])[0]
    assert tokenizer.decode(ids) == "<|user|>a <|user|> b<|im_end|><|im_start|>"


def test_of_markers_of_which_one_begins_as_another_each_is_text() -> None:
    tokenizer = TOKENIZERS["plain"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im", "<|im_end|>s", "<|im_end"]})
    made = Chat(tokenizer)
    said = "a <|im_end|>s <|im_end|> <|im_end <|im b"
    turn = made.turn([QUESTION], said)
    assert made.tokenizer.decode(turn) == said + "<|im_end|>"
    assert [id for id in turn if id in tokenizer.added_tokens_decoder] == [made.end_id]


def test_a_tokenizer_that_cannot_write_a_marker_as_text_refuses_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("plain")
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    assert made.turn([QUESTION], "An ordinary answer.")
    with pytest.raises(DataError, match=r"names the marker <\|im_end\|>, which this tokenizer cannot write"):
        made.turn([QUESTION], "The token <|im_end|> ends a turn.")


def folder(path: Path, tiny_model: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The tiny model's config and tokenizer, with a changed generation config."""
    for file in tiny_model.iterdir():
        if file.name != "complete":
            (path / file.name).symlink_to(file)
    settings = json.loads((path / "generation_config.json").read_text())
    change(settings)
    (path / "generation_config.json").unlink()
    (path / "generation_config.json").write_text(json.dumps(settings))
    return str(path)


def test_stops_come_from_the_generation_config_and_must_be_in_the_vocabulary(tmp_path: Path, tiny_model: Path) -> None:
    several = tmp_path / "several"
    several.mkdir()
    path = folder(several, tiny_model, lambda settings: settings.update(eos_token_id=[0, 1]))
    assert models.load_chat(path, ModelConfig()).stop_ids == [0, 1, 2]
    beyond = tmp_path / "beyond"
    beyond.mkdir()
    path = folder(beyond, tiny_model, lambda settings: settings.update(eos_token_id=[2, 512]))
    with pytest.raises(ModelError, match=r"generation_config.json stops on token 512 .*the model has 512"):
        models.load_chat(path, ModelConfig())


def test_a_token_that_the_model_has_no_row_for_is_refused() -> None:
    tokenizer = TOKENIZERS["plain"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|domain|>"]})
    tokenizer.chat_template = "<|domain|>" + str(tokenizer.chat_template)
    made = Chat(tokenizer, size=512)
    with pytest.raises(DataError, match=r"writes <\|domain\|> \(512\), and the model has 512 tokens"):
        made.prompt([{"role": "user", "content": "What?"}])
    assert Chat(tokenizer, size=513).prompt([{"role": "user", "content": "What?"}])[0] == 512


def test_tags_within_an_answer_are_a_part_of_it() -> None:
    made = make("qwen3")
    for text in (
        "Use the <reflection> element; the answer is 42",
        "It is </reasoning> that ends it",
        "a <thought>x</thought> b",
    ):
        assert made.text(made.tokenizer.encode(text, add_special_tokens=False)) == text
    thought = made.tokenizer.encode("<think>\nhm\n</think>\n\n42", add_special_tokens=False)
    assert made.text(thought) == "42"


def test_the_end_of_a_turn_may_stand_on_a_line_of_its_own() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = TOKENIZERS["plain"]()
    tokenizer.chat_template = template
    tokenizer.eos_token = "<|endoftext|>"
    made = Chat(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert made.end_id == end
    turn = made.turn([{"role": "user", "content": "Yes?"}], "Yes.")
    assert turn.index(end) == len(turn) - 1


def test_a_switch_that_a_template_only_asks_about_is_one() -> None:
    opening = (
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}Think first. {% endif %}{% endif %}"
    )
    made = with_template(CHATML + opening, thinking=True)
    assert "Think first." in made.tokenizer.decode(made.prompt([{"role": "user", "content": "What?"}]))
