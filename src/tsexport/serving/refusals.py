"""Why a request is not answered: an HTTP status and a sentence.  Everything else that is raised is a bug, and a 500."""

from http import HTTPStatus

RETRY_AFTER_S = 1
_MAX_MESSAGE = 1000
"""Characters: a message may quote a name out of a body of megabytes, and stands in the answer and in the log."""


class Refusal(Exception):
    """A request that is refused.

    400: it cannot be read.  404: no such model.  408: it took too long.  413: too large.  415: an unknown encoding.
    422: it was read, and is not what the model takes.  429: too much to do.  503: the server is shutting down.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 3] + "..."

    @property
    def headers(self) -> dict[str, str]:
        """What the answer carries beside the message: when to come again, or that the connection ends here."""
        match self.status:
            case HTTPStatus.TOO_MANY_REQUESTS:
                return {"Retry-After": str(RETRY_AFTER_S)}
            case HTTPStatus.SERVICE_UNAVAILABLE:
                return {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
            case HTTPStatus.REQUEST_TIMEOUT:
                return {"Connection": "close"}
        return {}


def unreadable(message: str) -> Refusal:
    """Return a refusal of what cannot be read at all."""
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def unfit(message: str) -> Refusal:
    """Return a refusal of what was read, and does not fit the model."""
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message)
