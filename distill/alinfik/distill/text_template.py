"""How a prompt and a completion are laid out as text for a language model.

In: what `--template` says, and the model's tokenizer. Out: the two templates of
`alinfik.v1.Encoding`, which the server follows too. Knows nothing of samples.
"""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alinfik.command import CommandError

PROMPT = "{prompt}"
COMPLETION = "{completion}"
# Stands before a chat template, since some tell the date of the day, as those of Llama 3.2 and
# SmolLM3 do: a run begun yesterday could not be finished. It is what Llama's falls back on.
_FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


class TextTemplateError(CommandError):
    """A template that does not say where prompt and completion stand, or that the model lacks."""


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """The two halves of a sample's text.

    Attributes:
        prompt: holds `{prompt}` once; left out for a sample without a prompt.
        completion: holds `{completion}` once; the loss is taken on all of it.
    """

    prompt: str
    completion: str


PLAIN = TextTemplate(prompt=f"{PROMPT}\n", completion=COMPLETION)


def text_template(choice: str, tokenizer: PreTrainedTokenizerBase) -> TextTemplate:
    """Return the template that `--template` names.

    Args:
        choice: `plain`, a line each; `chat`, the model's own chat template, with the prompt as the
            user's turn, the completion as the assistant's and, where it tells the date, always the
            same one; or a text with `{prompt}` and `{completion}` in it.
        tokenizer: the model's.

    Raises:
        TextTemplateError: the text lacks one of the two, or the model has no chat template, or one
            that does not show them as they are.
    """
    if choice == "plain":
        return PLAIN
    if choice == "chat":
        return _chat(tokenizer)
    if choice.count(PROMPT) != 1 or choice.count(COMPLETION) != 1:
        raise TextTemplateError(
            f"--template {choice!r}: give plain, chat, or a text that holds {PROMPT} and "
            f"{COMPLETION} once each, as in 'Q: {PROMPT} A: {COMPLETION}'"
        )
    if choice.index(PROMPT) > choice.index(COMPLETION):
        raise TextTemplateError(f"--template {choice!r}: {PROMPT} must stand before {COMPLETION}")
    prompt, _, rest = choice.partition(COMPLETION)
    return TextTemplate(prompt, COMPLETION + rest)


def _chat(tokenizer: PreTrainedTokenizerBase) -> TextTemplate:
    if not tokenizer.chat_template:
        raise TextTemplateError(
            "--template chat: the model has no chat template; give --template plain, or a text "
            f"that holds {PROMPT} and {COMPLETION}"
        )
    question = [{"role": "user", "content": PROMPT}]
    answer = [*question, {"role": "assistant", "content": COMPLETION}]

    def rendered(turns: list[dict[str, str]], *, more: bool) -> str:
        template = _FIXED_DAY + tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=more
        )
        return str(text)

    try:
        prompt, whole = rendered(question, more=True), rendered(answer, more=False)
    except TemplateError as error:
        raise TextTemplateError(f"--template chat: the model's template fails ({error})") from error
    # What follows the turn's end is never the model's to say.
    completion = whole.removeprefix(prompt).rstrip()
    if prompt.count(PROMPT) != 1 or not completion.startswith(COMPLETION):
        raise TextTemplateError(
            "--template chat: the model's template does not show a prompt as it is and the "
            f"completion right after it; give a text that holds {PROMPT} and {COMPLETION} instead"
        )
    # Every sample begins with the start token already.
    return TextTemplate(prompt.removeprefix(str(tokenizer.bos_token)), completion)
