"""Dialogues as tokens: append-only, no mask from token values, and no way to forge a turn."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_model
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib.chat import ChatFormat
from itpo_lib.dialogue import Dialogue, collate
from itpo_lib.errors import ItpoError
from itpo_lib.logprobs import token_logprobs
from itpo_lib.models import tiny_tokenizer

CONTROL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
OPENING = [{"role": "user", "content": "help me please ."}]
WHOLE = [
    *OPENING,
    {"role": "assistant", "content": "how many apples ?"},
    {"role": "user", "content": "it is 5 of them ."},
    {"role": "assistant", "content": "the answer is 12 plus 5 ."},
]


# Dialogue


def test_turn_ids_mark_exactly_what_the_policy_wrote():
    d = Dialogue([1, 2], list(OPENING))
    d.add_assistant([5, 6], [-0.1, -0.2], "a")
    d.add_user([7, 8, 9], "b")
    d.add_assistant([6], [-0.3], "c")
    d.add_environment([4])
    assert d.completion_ids == [5, 6, 7, 8, 9, 6, 4]
    assert d.turn_ids == [1, 1, 0, 0, 0, 2, 0]
    assert d.logprobs == [-0.1, -0.2, 0.0, 0.0, 0.0, -0.3, 0.0]
    assert d.n_turns == 2 and [m["role"] for m in d.messages] == ["user", "assistant", "user", "assistant"]
    assert d.assistant_words == 2


def test_adjacent_assistant_turns_keep_their_own_ids():
    d = Dialogue([1], list(OPENING))
    d.add_assistant([5], [0.0], "a")
    d.add_assistant([6], [0.0], "b")
    assert d.turn_ids == [1, 2]


def test_bad_turns_are_refused():
    d = Dialogue([1], list(OPENING))
    with pytest.raises(ItpoError, match="at least one token"):
        d.add_assistant([], [], "")
    with pytest.raises(ItpoError, match="2 token ids but 1 log-probs"):
        d.add_assistant([1, 2], [0.0], "")


def test_to_dict_and_back(chat):
    d = chat.dialogue(WHOLE)
    d.outcome, d.ended, d.user_seed = 0.5, "user", 3
    assert Dialogue.from_dict(json.loads(json.dumps(d.to_dict()))) == d
    with pytest.raises(ItpoError, match="surprise"):
        Dialogue.from_dict({**d.to_dict(), "surprise": 1})
    with pytest.raises(ItpoError, match="prompt_ids"):
        Dialogue.from_dict({"messages": []})


# The batch


def two_dialogues() -> list[Dialogue]:
    one, two = Dialogue([1, 2, 3], list(OPENING)), Dialogue([1], list(OPENING))
    one.add_assistant([5, 6], [-1.0, -2.0], "a")
    two.add_assistant([7], [-3.0], "b")
    two.add_user([8, 8], "u")
    two.add_assistant([9, 6], [-4.0, -5.0], "c")
    return [one, two]


def test_collate_right_pads():
    batch = collate(two_dialogues(), pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6, 0], [1, 7, 8, 8, 9, 6]]
    assert batch.completion_ids.tolist() == [[5, 6, 0, 0, 0], [7, 8, 8, 9, 6]]
    assert batch.turn_ids.tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 2, 2]]
    assert batch.attention_mask.tolist() == [[True] * 5 + [False], [True] * 6]
    assert batch.prompt_lengths.tolist() == [3, 1] and batch.completion_lengths.tolist() == [2, 5]
    with pytest.raises(ItpoError, match="no dialogues"):
        collate([], 0)


@pytest.mark.parametrize("pad_id", [0, 1, 5, 6, 9])
def test_masks_never_come_from_token_values(pad_id):
    """A fill that equals an end of turn, a word or a prompt token changes no mask."""
    batch, plain = collate(two_dialogues(), pad_id), collate(two_dialogues(), 99)
    for name in ("attention_mask", "assistant_mask", "turn_ids", "logprobs"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))


def test_rows_cut_to_the_longest():
    batch = collate(two_dialogues(), pad_id=0)
    first = batch.rows(slice(0, 1))
    assert first.input_ids.tolist() == [[1, 2, 3, 5, 6]] and first.turn_ids.tolist() == [[1, 1]]
    picked = batch.rows(torch.tensor([1, 0]))
    assert picked.input_ids[0].tolist() == [1, 7, 8, 8, 9, 6]
    assert len(batch.to("cpu")) == 2


def test_empty_completions_make_a_batch():
    batch = collate([Dialogue([1, 2], list(OPENING))], 0)
    assert batch.turn_ids.shape == (1, 1) and not batch.assistant_mask.any()


def test_pad_that_equals_end_of_turn(task):
    """The most common setting in the wild: tokenizer.pad_token = tokenizer.eos_token."""
    tokenizer = tiny_tokenizer(task.vocabulary())
    model = make_model(tokenizer)
    plain = ChatFormat(tokenizer)
    dialogues = [plain.dialogue(WHOLE), plain.dialogue(WHOLE[:2])]
    expected = token_logprobs(model, collate(dialogues, plain.pad_id))
    tokenizer.pad_token = tokenizer.eos_token
    same = ChatFormat(tokenizer)
    assert same.pad_id == same.end_of_turn_id
    batch = collate([same.dialogue(WHOLE), same.dialogue(WHOLE[:2])], same.pad_id)
    ends = batch.completion_ids == same.end_of_turn_id
    assert int((ends & batch.assistant_mask).sum()) == 3  # every turn's end is trained on, no padding is
    assert torch.equal(token_logprobs(model, batch), expected)


# The chat format


def test_prompt_equals_the_template(chat, tokenizer, task):
    for i in range(30):
        messages = task.opening_messages(task.goal(i))
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat.prompt_ids(messages) == expected
    system = [{"role": "system", "content": "help me please ."}, *OPENING]
    expected = tokenizer.apply_chat_template(system, add_generation_prompt=True, return_dict=False)
    assert chat.prompt_ids(system) == expected


def test_dialogue_equals_the_template(chat, tokenizer):
    d = chat.dialogue(WHOLE)
    assert d.prompt_ids + d.completion_ids == tokenizer.apply_chat_template(WHOLE, return_dict=False)
    assert chat.text([i for i, t in zip(d.completion_ids, d.turn_ids, strict=True) if t == 2]) == WHOLE[3]["content"]


def test_turns_end_with_the_end_of_turn(chat, tokenizer):
    assert chat.end_of_turn_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert set(tokenizer.convert_tokens_to_ids(list(CONTROL))) <= chat.control_ids
    assert chat.user_ids("it is 5") == tokenizer.convert_tokens_to_ids(
        ["<|user|>", "it", "is", "5", "<|end|>", "<|assistant|>"]
    )


words = st.sampled_from(["apples", "answer", "5", "zebra", "@@0@@", "@@assistant@@", *CONTROL])
texts = st.lists(words, max_size=8).flatmap(lambda w: st.sampled_from([" ", "", "\n"]).map(lambda glue: glue.join(w)))


@given(texts | st.text(max_size=30))
def test_no_text_can_forge_a_turn(chat, text):
    """However a text is glued together from control tokens, none of them comes out (`<unk>` may)."""
    power = chat.control_ids - {chat.tokenizer.unk_token_id}
    assert not power.intersection(chat.plain_ids(text))
    prompt = chat.prompt_ids([{"role": "user", "content": text}])
    plain = chat.prompt_ids([{"role": "user", "content": ""}])
    assert [i for i in prompt if i in power] == [i for i in plain if i in power]
    replies = chat.dialogue([*OPENING, *({"role": r, "content": text} for r in ("assistant", "user", "assistant"))])
    quiet = chat.dialogue([*OPENING, *({"role": r, "content": ""} for r in ("assistant", "user", "assistant"))])
    assert [i for i in replies.completion_ids if i in power] == [i for i in quiet.completion_ids if i in power]
    assert replies.n_turns == 2


def test_a_saved_tokenizer_cannot_be_forged_either(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer.save_pretrained(tmp_path)
    loaded = ChatFormat(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    for text in (" ".join(CONTROL), "".join(CONTROL), "apples<|end|>"):
        assert not (loaded.control_ids - {loaded.tokenizer.unk_token_id}).intersection(loaded.plain_ids(text))


def test_a_tokenizer_that_types_control_tokens_is_refused(tokenizer):
    """If control tokens are words of the core model, plain encoding cannot disarm them: say so."""
    core = tiny_tokenizer(["hello", "<|end|>", "<|user|>", "<|assistant|>"])
    with pytest.raises(ItpoError, match="control tokens"):
        ChatFormat(core).plain_ids("hello <|end|>")


def test_templates_that_cannot_work_are_refused(task):
    tokenizer = tiny_tokenizer(task.vocabulary())
    tokenizer.chat_template = None
    with pytest.raises(ItpoError, match="no chat template"):
        ChatFormat(tokenizer)
    tokenizer.chat_template = (  # drops earlier assistant turns, as templates that strip <think> do
        "{% for m in messages %}{% if m['role'] != 'assistant' %}<|user|> {{ m['content'] }} <|end|> {% endif %}"
        "{% endfor %}<|assistant|> "
    )
    with pytest.raises(ItpoError, match="not prefix-preserving"):
        ChatFormat(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} apples {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    with pytest.raises(ItpoError, match="does not close an assistant turn"):
        ChatFormat(tokenizer)


def test_a_template_that_drops_a_role_is_refused(task):
    tokenizer = tiny_tokenizer(task.vocabulary())
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    with pytest.raises(ItpoError, match="drops the system message"):
        ChatFormat(tokenizer).prompt_ids([{"role": "system", "content": "hello"}, *OPENING])


def test_control_tokens_leave_the_text(chat):
    ids = chat.plain_ids("the answer is 12")
    assert chat.text([*ids, chat.end_of_turn_id]) == "the answer is 12"
    assert chat.text([chat.end_of_turn_id]) == ""
