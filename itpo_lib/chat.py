"""Turns as token ids for any chat template, without re-rendering a transcript.

The template is rendered once with markers in place of the texts and cut at the markers. What lies
between is glue, encoded with control tokens; what replaces a marker is content, encoded as plain
text. So no user, document or model output can forge a turn.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from .dialogue import Dialogue, Message
from .errors import ItpoError, require

_MARKERS = ("@@first-user@@", "@@assistant@@", "@@next-user@@")


class ChatFormat:
    """The token-level chat format of one tokenizer.

    Attributes: `end_of_turn_id`, the token that closes an assistant turn; `control_ids`, every
    control token, each of which ends a turn when the policy samples it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        require(
            getattr(tokenizer, "chat_template", None) is not None,
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model",
        )
        self.tokenizer = tokenizer
        self.control_ids = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        first, reply, following = _MARKERS
        opening = self._render([{"role": "user", "content": first}])
        whole = self._render(
            [
                {"role": "user", "content": first},
                {"role": "assistant", "content": reply},
                {"role": "user", "content": following},
            ]
        )
        if not whole.startswith(opening + reply):
            raise ItpoError(
                f"the chat template of {tokenizer.name_or_path!r} rewrites earlier turns: it is not prefix-preserving, "
                "so token-in = token-out cannot hold; pass a tokenizer with a training template"
            )
        before, after = whole[len(opening + reply) :].split(following)
        closing = self._glue(before)
        require(
            len(closing) > 0 and closing[0] in self.control_ids,
            f"the chat template of {tokenizer.name_or_path!r} does not close an assistant turn with a control token",
        )
        self.end_of_turn_id = closing[0]
        self._before_user, self._after_user = closing[1:], self._glue(after)

    @property
    def pad_id(self) -> int:
        """A fill value; never used to derive a mask."""
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn_id if pad is None else pad

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Token ids of the opening messages, ready for the assistant's first token."""
        marked: list[Message] = [{"role": m["role"], "content": f"@@{i}@@"} for i, m in enumerate(messages)]
        rest, ids = self._render(marked), []
        for mark, message in zip(marked, messages, strict=True):
            require(mark["content"] in rest, f"the chat template drops the {message['role']} message")
            glue, rest = rest.split(mark["content"], 1)
            ids += self._glue(glue) + self.plain_ids(message["content"])
        return ids + self._glue(rest)

    def user_ids(self, text: str) -> list[int]:
        """Token ids between two assistant turns: glue, the user's text, glue. Excludes the end of turn."""
        return self._before_user + self.plain_ids(text) + self._after_user

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text in which control tokens have no power."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        forged = self.control_ids.intersection(ids) - {self.tokenizer.unk_token_id}
        if forged:
            raise ItpoError(f"text would be encoded as the control tokens {sorted(forged)}: {text[:80]!r}")
        return ids

    def dialogue(self, messages: list[Message]) -> Dialogue:
        """Tokens of a dialogue that no policy sampled: a script's or a person's. Log-probs are 0."""
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
        result = Dialogue(self.prompt_ids(messages[:first]), list(messages[:first]))
        for message in messages[first:]:
            if message["role"] == "assistant":
                ids = [*self.plain_ids(message["content"]), self.end_of_turn_id]
                result.add_assistant(ids, [0.0] * len(ids), message["content"])
            else:
                result.add_user(self.user_ids(message["content"]), message["content"])
        return result

    def text(self, ids: list[int]) -> str:
        """The plain text of sampled ids, control tokens left out."""
        return str(self.tokenizer.decode([i for i in ids if i not in self.control_ids])).strip()

    def _render(self, messages: list[Message]) -> str:
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        return str(self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))

    def _glue(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
