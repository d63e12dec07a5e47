"""A Python function as a reward, named by `module:function`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from alignment.errors import ConfigError, RewardError
from alignment.rewards.answers import scores_from_answer
from alignment.rewards.texts import TextPair

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]
"""`score(prompts, responses) -> scores`: texts of one step, equally long; one finite number for
each response, higher is better. It may return an array or a tensor. A prompt of several turns is
`role: text`, a blank line between. It runs in the process and thread of
the training loop, once a step."""


class FunctionReward:
    """Scores texts by a function the user wrote."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = load_function(name)

    def score_texts(self, texts: Sequence[TextPair]) -> Tensor:
        """One score a response, float32 [B].

        Raises:
            RewardError: the function raised, or did not give one finite number a response.
        """
        prompts, responses = [t.prompt_text for t in texts], [t.response for t in texts]
        try:
            answer = self._function(prompts, responses)
        except Exception as error:  # the user's own code: whatever it raises is its answer
            raise RewardError(
                f"reward function {self.name} raised {type(error).__name__}: {error} (on "
                f"{len(texts)} responses); correct it and run again, the step was not trained on"
            ) from error
        return scores_from_answer(answer, len(texts), source=f"reward function {self.name}")


def load_function(name: str) -> RewardFunction:
    """The function behind `module:function`; modules in the working folder are found too.

    Raises:
        ConfigError: there is no such module or function, it cannot be imported, or it does not take
            two arguments.
    """
    module_name, _, attribute = name.partition(":")
    source_of_function(name)
    with _working_folder_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # importing runs the user's own code
            raise ConfigError(
                f"reward function {name}: importing {module_name} raised "
                f"{type(error).__name__}: {error}"
            ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "is not a function" if hasattr(module, attribute) else "is not there"
        raise ConfigError(
            f"reward function {name}: {attribute} {found} in {module_name}; it needs "
            f"`def {attribute}(prompts: list[str], responses: list[str]) -> list[float]`"
        )
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise ConfigError(
            f"reward function {name} cannot be called with two lists, prompts and responses: "
            f"{error}; its signature is {inspect.signature(function)}"
        ) from None
    result: RewardFunction = function
    return result


def source_of_function(name: str) -> Path:
    """The file that holds the function, found without running it (its packages are imported).

    Raises:
        ConfigError: there is no such module, or it has no file of Python text.
    """
    module_name = name.partition(":")[0]
    with _working_folder_first():
        importlib.invalidate_caches()
        try:
            spec = find_spec(module_name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"reward function {name}: {error}") from error
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(
            f"reward function {name}: there is no Python file for module {module_name}; put "
            f"{module_name.replace('.', '/')}.py into the folder you run in ({Path.cwd()}), or "
            "install it"
        )
    return Path(spec.origin)


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """As with `python -m`; an installed command does not look there by itself."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
