"""Writes Ollama's Modelfile for a GGUF file: the model, its chat template as a Go template, and stop strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.models.templates import Refused
from stages.models.text import Codec

_MARKS = {"system": "zSz", "user": "zQz", "assistant": "zAz"}


@dataclass(frozen=True)
class Turns:
    """A chat template that puts fixed text around each message, as most do.

    Attributes:
        start: text before the first message, without BOS, which llama.cpp adds if the tokenizer does.
        around: role -> text before and after the message.
        answer: the generation prompt after the last message.
    """

    start: str
    around: Mapping[str, tuple[str, str]]
    answer: str

    @classmethod
    def of(cls, codec: Codec) -> Turns | None:
        """Extracts the turns from renderings of marked messages, and verifies them on other conversations. None if
        the template does more than put fixed text around messages."""
        single = _render(codec, ["user"])
        user, assistant = (
            _around(_render(codec, ["user", role]).removeprefix(single), role) for role in ("user", "assistant")
        )
        turn = user[0] + _MARKS["user"] + user[1]
        start = single.removesuffix(turn)
        system = _around(_render(codec, ["system", "user"]).removeprefix(start).removesuffix(turn), "system")
        answer = _render(codec, ["user"], generation=True).removeprefix(single)
        around = {"user": user, "assistant": assistant}
        for turns in (cls(start, {"system": system, **around}, answer), cls(start, around, answer)):
            tests = (["user"], ["user", "assistant", "user"], [*turns.around, "user"])
            if all(turns.render(test) == _render(codec, test, generation=True) for test in tests):
                return turns
        return None

    def render(self, roles: list[str]) -> str:
        parts = [self.around[role][0] + _MARKS[role] + self.around[role][1] for role in roles]
        return self.start + "".join(parts) + self.answer

    def go(self) -> str:
        """The template in the language of Go's text/template."""
        cases = [
            f'{{{{ {"else if" if i else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for i, (role, (before, after)) in enumerate(sorted(self.around.items()))
        ]
        return f"{self.start}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def _around(text: str, role: str) -> tuple[str, str]:
    before, _, after = text.partition(_MARKS[role])
    return before, after


def _render(codec: Codec, roles: list[str], *, generation: bool = False) -> str:
    """Renders marked messages under the tokenizer's template, without BOS; empty if it refuses them."""
    messages = [{"role": role, "content": _MARKS[role]} for role in roles]
    try:
        text = codec.template.as_given(messages, generation=generation)
    except Refused:
        return ""
    return text.removeprefix(codec.tokenizer.bos_token or "")


def modelfile(codec: Codec, gguf: str, temperature: float) -> str:
    """The text of a Modelfile for the file `gguf` in the same folder."""
    turns = Turns.of(codec)
    stops = filter(None, codec.tokenizer.convert_ids_to_tokens(sorted(codec.stop_ids)))
    if turns is None:
        template = "# The chat template does more than put text around messages: write TEMPLATE by hand.\n"
    else:
        template = f'TEMPLATE """{turns.go()}"""\n'
    return f"FROM ./{gguf}\n{template}PARAMETER temperature {temperature:g}\n" + "".join(
        f'PARAMETER stop "{stop}"\n' for stop in stops
    )
