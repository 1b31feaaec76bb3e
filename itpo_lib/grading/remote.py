"""Call a student's functions in another process, as if they were here.

The judge holds tests and points, the worker holds the student's code. JSON messages go through a pipe:
numbers, texts, containers and tensors by value, everything else as a handle. The judge never unpickles
what the worker sends: the worker decides on its functions' results, and on nothing else. Gradients pass
both ways: a backward() in the judge asks the worker, and gradients that the student's code leaves in
its arguments reach the judge's tensors.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import json
import linecache
import pickle
import re
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks.core import numbers
from ..errors import require
from ..tasks.base import Reply

MAX_MESSAGE = 8 * 2**20
MAX_TEXT = 2000  # characters of an error
OPTIMIZER_METHODS = ("step", "zero_grad")  # what a student may do with an optimizer of the judge
ENDED = "your code ended its process: os._exit, a crash, or more memory than allowed"


class Gone(BaseException):
    """The worker ended, ran out of time or broke the rules; no `except Exception` of a test hides it."""


class Handle:
    """Stands for an object of the student's process."""

    def __init__(self, channel: Channel, number: int, kind: str):
        self._channel, self._number, self.__name__ = channel, number, f"a {kind}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.call(self._number, "", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._channel.ask("attribute", self._number, name)
        if isinstance(value, Handle):
            self.__dict__[name] = value  # a method stays one
        return value

    def __deepcopy__(self, memo: dict) -> Handle:
        return self


class JudgesHandle(Handle):
    """Stands for an object of the judge: it can be called, and so can its methods."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._channel.call(self._number, name, args, kwargs)


class Channel:
    """What both ends share: messages, values, and requests within requests."""

    handle: type[Handle]

    def __init__(self, connection: Connection):
        self.connection, self.deadline = connection, float("inf")
        self.objects: list[Any] = []  # what the other side may name, by its number
        self.open = self.serving = 0  # requests without an answer yet: to the other side, from it
        self.operations: dict[str, Callable[..., Any]] = {}  # what the other side may ask for

    def ask(self, operation: str, *args: Any) -> Any:
        """Have the other side do something; serve its own requests until it answers."""
        request = {"do": operation, "args": [self.encode(a) for a in args]}
        self.open += 1
        self.send(request)
        while "do" in (message := self.receive()):
            self.serve(message)
        self.open -= 1
        if "error" in message:
            raise_here(*message["error"])
        return self.decode(message["value"])

    def serve(self, message: dict[str, Any]) -> None:
        """Do what the other side asks for; send the result or the error."""
        self.serving += 1
        try:
            value = self.operations[message["do"]](*self.decode(message["args"]))
            answer = {"value": self.encode(value)}
        except Gone:
            raise
        except BaseException as error:
            answer = {"error": describe(error)}
        finally:
            self.serving -= 1
        self.send(answer)

    def call(self, number: int, method: str, args: tuple, kwargs: dict) -> Any:
        return self.ask("call", number, method, args, kwargs)

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        require(len(data) <= MAX_MESSAGE, "a value of this size cannot be passed on")
        try:
            self.connection.send_bytes(data)
        except OSError:
            raise Gone(ENDED) from None

    def receive(self) -> dict[str, Any]:
        left = self.deadline - time.monotonic()
        try:
            if left <= 0 or not self.connection.poll(None if left == float("inf") else left):
                raise Gone("no result in time: is there a loop that never ends?")
            data = self.connection.recv_bytes(MAX_MESSAGE)
        except (OSError, EOFError):
            raise Gone(ENDED) from None
        return json.loads(data)

    def encode(self, value: Any) -> Any:
        """A value as JSON; what has no such form becomes a handle."""
        if value is None:
            return None
        for plain in (bool, int, float, str):
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, list):
            return [self.encode(v) for v in value]
        if isinstance(value, dict):
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        for kind in (tuple, set, frozenset):
            if isinstance(value, kind):
                return {kind.__name__: [self.encode(v) for v in value]}
        if isinstance(value, np.generic):
            return self.encode(value.item())
        if isinstance(value, np.ndarray):
            return {"array": self.encode(torch.as_tensor(value.copy()))}
        if isinstance(value, Tensor):
            data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            form = [str(value.dtype), list(value.shape), base64.b64encode(data).decode()]
            return {"tensor": form, "grad": self.keep(value) if value.requires_grad else None}
        if type(value) is Reply:
            return {"reply": [self.encode(value.text), self.encode(value.done)]}
        if isinstance(value, Handle):
            return {"yours": value._number}
        return self.encode_object(value)

    def decode(self, data: Any) -> Any:
        """The value of a JSON form."""
        if isinstance(data, list):
            return [self.decode(d) for d in data]
        if not isinstance(data, dict):
            return data
        kind, content = next(iter(data.items()))
        if kind == "dict":
            return {self.decode(k): self.decode(v) for k, v in content}
        if kind in ("tuple", "set", "frozenset"):
            return getattr(builtins, kind)(self.decode(content))
        if kind == "array":
            return self.decode(content).numpy()
        if kind == "tensor":
            value = to_tensor(*content)
            return value if data["grad"] is None else self.with_gradient(value, data["grad"])
        if kind == "reply":
            return Reply(*self.decode(content))
        if kind == "yours":
            return self.objects[content]
        if kind == "mine":
            return self.handle(self, int(content[0]), str(content[1])[:80])
        return self.decode_object(kind, content)

    def keep(self, value: Any) -> int:
        """The number under which the other side may name `value`."""
        self.objects.append(value)
        return len(self.objects) - 1

    def encode_object(self, value: Any) -> dict[str, Any]:
        return {"mine": [self.keep(value), type(value).__name__]}

    def decode_object(self, kind: str, content: Any) -> Any:
        raise ValueError(f"unknown form {kind[:20]!r}")

    def with_gradient(self, value: Tensor, number: int) -> Tensor:
        """`value`, so that gradients find back to the other side's tensor `number`."""
        raise NotImplementedError


class JudgeEnd(Channel):
    """The end that trusts nobody. Its `objects` are only what a test handed to the student's code."""

    handle = Handle

    def __init__(self, connection: Connection):
        super().__init__(connection)
        self.operations["call"] = self.do_call
        self.first = 0  # of `objects` in the latest call

    def encode_object(self, value: Any) -> dict[str, Any]:
        if not callable(value) and not isinstance(value, torch.optim.Optimizer):
            try:
                return {"pickle": base64.b64encode(pickle.dumps(value)).decode()}
            except Exception:  # whatever pickle cannot do becomes a handle
                pass
        return super().encode_object(value)

    def ask(self, operation: str, *args: Any) -> Any:
        if self.open != self.serving:  # an alarm cut off an earlier request, and its answer may still come
            raise Gone("your code was stopped")
        return super().ask(operation, *args)

    def receive(self) -> dict[str, Any]:
        message = super().receive()
        for number, gradient in message.get("gradients", []):
            self.objects[number].backward(self.decode(gradient), retain_graph=True)
        return message

    def call(self, number: int, method: str, args: tuple, kwargs: dict) -> Any:
        """The worker's result; arguments that it changed in place are changed here, too."""
        self.first = len(self.objects)
        value, changed = super().call(number, method, args, kwargs)
        for i, now in changed:
            if isinstance(args[i], Tensor):
                args[i].copy_(now)
            elif isinstance(args[i], dict | set):
                args[i].clear()
                args[i].update(now)
            else:
                args[i][:] = now
        return value

    def do_call(self, number: int, method: str, args: tuple, kwargs: dict) -> Any:
        target = self.objects[number]
        if isinstance(target, torch.optim.Optimizer) and method in OPTIMIZER_METHODS:
            return getattr(target, method)(*args, **kwargs)
        if method or not callable(target):
            raise AttributeError(f"{method or 'this'} is not at hand while grading")
        return target(*args, **kwargs)

    def with_gradient(self, value: Tensor, number: int) -> Tensor:
        sources = [i for i in range(self.first, len(self.objects)) if isinstance(self.objects[i], Tensor)]
        return Through.apply(self, number, sources, value, *(self.objects[i] for i in sources))


class Through(torch.autograd.Function):
    """A result whose gradient is computed in the worker."""

    @staticmethod
    def forward(ctx: Any, judge: JudgeEnd, number: int, sources: list[int], value: Tensor, *inputs: Tensor) -> Tensor:
        ctx.request = judge, number, sources
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        judge, number, sources = ctx.request
        return None, None, None, None, *judge.ask("backward", number, sources, gradient)


class WorkerEnd(Channel):
    """The end in the student's process; it trusts the judge."""

    handle = JudgesHandle

    def __init__(self, connection: Connection, names: dict[str, Any], run_cell: Callable[[str], str | None]):
        super().__init__(connection)
        self.leaves: dict[int, Tensor] = {}
        self.operations = {
            "call": self.do_call,
            "run": run_cell,
            "get": lambda name: names[name],
            "attribute": lambda number, name: getattr(self.objects[number], name),
            "backward": self.do_backward,
        }

    def serve(self, message: dict[str, Any]) -> None:
        self.asked = message["args"]
        super().serve(message)

    def send(self, message: dict[str, Any]) -> None:
        found = [(i, leaf) for i, leaf in self.leaves.items() if leaf.grad is not None]
        message["gradients"] = [[i, self.encode(leaf.grad)] for i, leaf in found]
        for _, leaf in found:
            leaf.grad = None
        super().send(message)

    def do_call(self, number: int, method: str, args: tuple, kwargs: dict) -> tuple[Any, list]:
        """The result, and the arguments that changed; what went by handle or with a gradient is not compared."""
        sent = [json.dumps(form) for form in self.asked[2]["tuple"]]
        value = self.objects[number](*args, **kwargs)
        plain = [i for i, text in enumerate(sent) if not re.search(r'"(mine|yours|pickle)":|"grad": \d', text)]
        return value, [(i, args[i]) for i in plain if json.dumps(self.encode(args[i])) != sent[i]]

    def do_backward(self, number: int, sources: list[int], gradient: Tensor) -> list[Tensor | None]:
        leaves = [self.leaves[i] for i in sources]
        found = torch.autograd.grad(self.objects[number], leaves, gradient, allow_unused=True, retain_graph=True)
        return list(found)

    def encode_object(self, value: Any) -> dict[str, Any]:
        """What the checks take for numbers goes by value, a deque for example."""
        array = None
        with contextlib.suppress(Exception):
            array = None if callable(value) else numbers(value)
        return super().encode_object(value) if array is None else self.encode(array.numpy())

    def decode_object(self, kind: str, content: Any) -> Any:
        return pickle.loads(base64.b64decode(content))

    def with_gradient(self, value: Tensor, number: int) -> Tensor:
        self.leaves[number] = value.requires_grad_()
        return value


def to_tensor(dtype: str, shape: list[int], data: str) -> Tensor:
    """A tensor from its bytes."""
    kind, raw = getattr(torch, dtype.removeprefix("torch.")), bytearray(base64.b64decode(data))
    return (torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)).reshape(shape)


def describe(error: BaseException) -> list[Any]:
    """Type, message, and the last line of a notebook's own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if re.search("ipython-input|<answer>", f.filename)]
    line = [frames[-1].lineno, (frames[-1].line or "")[:MAX_TEXT]] if frames else [0, ""]
    return [type(error).__name__[:80], str(error)[:MAX_TEXT], *line]


def raise_here(kind: str, message: str, number: int, line: str) -> None:
    """Raise the worker's error; its traceback ends in the student's line, as it would in a notebook."""
    known: Any = getattr(builtins, kind, object)
    special = StopIteration | StopAsyncIteration | UnicodeError | ExceptionGroup  # the first would end a test's loop
    if not (isinstance(known, type) and issubclass(known, Exception | SystemExit)) or issubclass(known, special):
        known = type(kind, (Exception,), {})
    above = "\n" * (min(number, 10_000) - 1)
    linecache.cache["<answer>"] = (0, None, [*above, line], "<answer>")
    exec(compile(f"{above}raise error", "<answer>", "exec"), {"error": known(message)})
