"""How `--template` lays out prompt and completion."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alinfik.distill.encoding import Encoder
from alinfik.distill.llm import load_llm
from alinfik.distill.samples import Row
from alinfik.distill.text_template import TextTemplate, TextTemplateError, text_template

CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] "
    "{{ message['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def tokenizer(tiny_llm: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llm)


def test_plain_text_is_prompt_line_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    assert text_template("plain", tokenizer) == TextTemplate("{prompt}\n", "{completion}")


def test_a_text_is_divided_at_the_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    found = text_template("Q: {prompt} A: {completion} END", tokenizer)
    assert found == TextTemplate("Q: {prompt} A: ", "{completion} END")


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("{prompt}", "once each"),
        ("{completion}", "once each"),
        ("{prompt}{prompt}{completion}", "once each"),
        ("{completion} {prompt}", "must stand before"),
        ("chat", "has no chat template"),
        ("chatty", "once each"),
    ],
)
def test_what_is_no_template_is_refused(
    tokenizer: PreTrainedTokenizerBase, choice: str, complaint: str
) -> None:
    with pytest.raises(TextTemplateError, match=complaint):
        text_template(choice, tokenizer)


def test_chat_makes_the_completion_the_assistant_s_turn(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = CHAT
    found = text_template("chat", tokenizer)
    # The start token is every sample's first already.
    assert found == TextTemplate("[user] {prompt}</s>\n[assistant] ", "{completion}</s>")


def test_chat_is_the_same_on_every_day(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif -%}"
        "Today: {{ today }}\n" + CHAT
    )
    assert text_template("chat", tokenizer).prompt.startswith("Today: 26 Jul 2024\n")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ messages[0]['content'] | upper }}", "does not show a prompt as it is"),
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{% for %}", "template fails"),
    ],
)
def test_a_chat_template_that_hides_the_text_is_refused(
    tokenizer: PreTrainedTokenizerBase, template: str, complaint: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TextTemplateError, match=complaint):
        text_template("chat", tokenizer)


def test_a_sample_has_the_tokens_of_the_chat(
    tokenizer: PreTrainedTokenizerBase, tiny_llm: Path, tmp_path: Path
) -> None:
    llm = load_llm(str(tiny_llm), dtype="float32")
    tokenizer.chat_template = CHAT
    llm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chatty = load_llm(str(tmp_path), template="chat", dtype="float32")
    row = Row(id="1", provider="", prompt="How many eggs?", completion="12 eggs", group="")
    [sample] = Encoder(chatty.tokenizer, chatty.encoding).encode([row])
    conversation = [
        {"role": "user", "content": row.prompt},
        {"role": "assistant", "content": row.completion},
    ]
    whole = str(tokenizer.apply_chat_template(conversation, tokenize=False)).rstrip()
    assert tokenizer.decode(sample.input_ids) == whole
    assert tokenizer.decode(sample.input_ids[sample.completion_start :]) == "12 eggs</s>"
