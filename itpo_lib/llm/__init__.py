"""Users and judges that are language models, behind a server or in this process."""

from .client import ChatModel, Counters
from .judge import LLMJudge
from .local import LocalModel
from .server import OpenAIModel
from .user import LLMUser

__all__ = ["ChatModel", "Counters", "LLMJudge", "LLMUser", "LocalModel", "OpenAIModel"]
