"""What a store is exercised with: a chat-like stream of requests, and block bytes that prove themselves.

Everything follows from a seed or from block keys: no state and no clock, the same again in every run.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import InvalidRequest, KVStoreError

Tokens = NDArray[np.uint32]
Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

KEY_NBYTES = 32
PAGE_NBYTES = 4096
PAGE_WORDS = PAGE_NBYTES // 8
PIECE_PAGES = 32  # checked at a time: 128 KiB stay in a core's cache between the two passes


class WrongBytes(KVStoreError):
    """A block came back with other bytes than were stored."""

    code = "DATA_LOSS"


@dataclass(frozen=True, slots=True)
class Chat:
    """The shape of a chat workload. Ranges are inclusive and drawn from evenly."""

    num_users: int = 32
    num_system_prompts: int = 4  # the first is the most used: weights 1, 1/2, 1/3, ...
    system_tokens: tuple[int, int] = (500, 2000)
    turn_tokens: tuple[int, int] = (20, 400)  # what a user writes
    answer_tokens: tuple[int, int] = (50, 600)
    turns: tuple[int, int] = (1, 12)  # of one conversation
    think_ms: tuple[int, int] = (1_000, 30_000)  # between an answer and the next turn
    vocabulary: int = 128_000

    def __post_init__(self) -> None:
        for name, low in (("num_users", 1), ("num_system_prompts", 1), ("vocabulary", 2)):
            if not low <= getattr(self, name) <= 2**31:
                raise InvalidRequest(f"{name} must be from {low} to {2**31}, not {getattr(self, name)}")
        for name in ("system_tokens", "turn_tokens", "answer_tokens", "turns", "think_ms"):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= 2**31:
                raise InvalidRequest(f"{name} must be 1 <= low <= high <= {2**31}, not ({low}, {high})")


@dataclass(frozen=True, slots=True, eq=False)
class ChatRequest:
    """One turn: the whole prompt as the engine gets it, and the answer that it will give."""

    arrival_ms: int
    user: int
    conversation: int  # numbered from 0 over all users, by their first request
    turn: int  # 0 for the first of its conversation
    prompt: Tokens  # system prompt, earlier turns and answers, new turn; read-only
    answer: Tokens  # the next prompt of this conversation starts with prompt + answer; read-only


def chat_requests(seed: int, num_requests: int, chat: Chat | None = None) -> Iterator[ChatRequest]:
    """`num_requests` turns in the order of their arrival.

    Each user holds one conversation after the other; each starts with one of the system prompts and grows with
    every turn and answer, so that a prompt repeats the earlier one of its conversation and shares its system
    prompt with others. What one user says does not depend on the number of users or requests.
    """
    chat = Chat() if chat is None else chat
    for name, value in (("seed", seed), ("num_requests", num_requests)):
        if value < 0:
            raise InvalidRequest(f"{name} must be 0 or more, not {value}")
    prompts = [
        _tokens(rng, _between(rng, chat.system_tokens), chat)
        for rng in (_random(seed, 0, number) for number in range(chat.num_system_prompts))
    ]
    heap = []
    for user in range(chat.num_users):
        turns = _turns(seed, user, chat, prompts)
        first = next(turns)
        heap.append((first.arrival_ms, user, first, turns))
    heapq.heapify(heap)
    conversations: dict[int, int] = {}  # of each user, the one under way
    num_conversations = 0
    for _ in range(num_requests):
        _, user, turn, turns = heap[0]
        if turn.turn == 0:
            conversations[user] = num_conversations
            num_conversations += 1
        yield replace(turn, conversation=conversations[user])
        following = next(turns)
        heapq.heapreplace(heap, (following.arrival_ms, user, following, turns))


def _turns(seed: int, user: int, chat: Chat, prompts: list[Tokens]) -> Iterator[ChatRequest]:
    """One user's turns without end; `conversation` is for the caller to fill in."""
    rng = _random(seed, 1, user)
    weights = 1 / np.arange(1, len(prompts) + 1)
    arrival_ms = _between(rng, (0, chat.think_ms[1]))  # users do not all begin at once
    while True:
        history = prompts[int(rng.choice(len(prompts), p=weights / weights.sum()))]
        for turn in range(_between(rng, chat.turns)):
            prompt = _joined(history, _tokens(rng, _between(rng, chat.turn_tokens), chat))
            answer = _tokens(rng, _between(rng, chat.answer_tokens), chat)
            yield ChatRequest(arrival_ms, user, -1, turn, prompt, answer)
            history = _joined(prompt, answer)
            arrival_ms += _between(rng, chat.think_ms)


def _random(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, number))))


def _between(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1], endpoint=True))


def _tokens(rng: np.random.Generator, num_tokens: int, chat: Chat) -> Tokens:
    return _joined(rng.integers(0, chat.vocabulary, num_tokens, dtype=np.uint32))


def _joined(*parts: Tokens) -> Tokens:
    joined = np.concatenate(parts)
    joined.flags.writeable = False
    return joined


def fill_payloads(keys: Bytes, out: Bytes) -> None:
    """Fill one block per row: keys uint8 (num_blocks, 32), out uint8 (num_blocks, nbytes).

    A block is a row of 4 KiB pages. Each is one fixed random page, XORed with a 64-bit word that is drawn from
    all of the key and the page's number: another key, another page or another place in it gives other bytes.
    """
    whole, rest = _pages(keys, out)
    masks = _masks(keys, -(-out.shape[1] // PAGE_NBYTES))
    num_whole = whole.shape[1]
    np.bitwise_xor(PATTERN, masks[:, :num_whole, None], out=whole)
    if rest.shape[1]:
        rest[:] = _rest(masks, rest.shape[1])


def check_payloads(keys: Bytes, blocks: Bytes) -> NDArray[np.bool_]:
    """Of each row, whether every byte is what fill_payloads writes for its key; bool (num_blocks,)."""
    whole, rest = _pages(keys, blocks)
    num_blocks, num_whole = whole.shape[:2]
    masks = _masks(keys, -(-blocks.shape[1] // PAGE_NBYTES))
    good = (rest == _rest(masks, rest.shape[1])).all(axis=1) if rest.shape[1] else np.ones(num_blocks, np.bool_)
    step_pages = min(max(num_whole, 1), PIECE_PAGES)
    step_blocks = PIECE_PAGES // step_pages
    room = np.empty((step_blocks, step_pages, PAGE_WORDS), np.uint64)
    for block in range(0, num_blocks, step_blocks):
        rows = slice(block, min(block + step_blocks, num_blocks))
        for page in range(0, num_whole, step_pages):
            columns = slice(page, min(page + step_pages, num_whole))
            piece = whole[rows, columns]
            differing = room[: piece.shape[0], : piece.shape[1]]
            np.bitwise_xor(piece, PATTERN, out=differing)
            np.bitwise_xor(differing, masks[rows, columns, None], out=differing)
            good[rows] &= ~np.bitwise_or.reduce(differing, axis=(1, 2)).astype(np.bool_)
    return good


def require_payloads(keys: Bytes, blocks: Bytes) -> None:
    """WrongBytes, naming the first block that is not what fill_payloads writes for its key."""
    right = check_payloads(keys, blocks)
    if not right.all():
        key = bytes(keys[int(np.argmin(right))]).hex()
        raise WrongBytes(f"block {key} came back with other bytes than were stored")


def _mixed(words: Words) -> Words:
    """SplitMix64's output function (Steele, Lea, Flood 2014): every bit of a word changes about half of it."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _masks(keys: Bytes, num_pages: int) -> Words:
    """The word of each page of each block, uint64 (num_blocks, num_pages)."""
    words = np.ascontiguousarray(keys).view("<u8")
    seeds = np.zeros(len(keys), np.uint64)
    for column in range(KEY_NBYTES // 8):
        seeds = _mixed(seeds ^ words[:, column])
    return _mixed(seeds[:, None] + GOLDEN * np.arange(1, num_pages + 1, dtype=np.uint64))


def _pages(keys: Bytes, blocks: Bytes) -> tuple[Words, Bytes]:
    """The whole pages of the blocks as words (num_blocks, num_pages, 512), and the bytes behind the last one."""
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_NBYTES:
        raise InvalidRequest(f"keys must be uint8 (num_blocks, 32), not {keys.dtype} {keys.shape}")
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or len(blocks) != len(keys) or blocks.strides[1] != 1:
        raise InvalidRequest(
            f"blocks must be contiguous rows of uint8 ({len(keys)}, nbytes), not {blocks.dtype} {blocks.shape}"
        )
    num_whole = blocks.shape[1] // PAGE_NBYTES
    split = num_whole * PAGE_NBYTES
    words = blocks[:, :split].view("<u8").reshape(len(blocks), num_whole, PAGE_WORDS)
    return words, blocks[:, split:]


def _rest(masks: Words, nbytes: int) -> Bytes:
    """What belongs into the last, incomplete page of each block."""
    return (PATTERN ^ masks[:, -1:]).view(np.uint8)[:, :nbytes]


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
PATTERN = _mixed(GOLDEN * np.arange(1, PAGE_WORDS + 1, dtype=np.uint64))
