"""The one way in which a request ends without an answer."""


class Refused(Exception):
    """A request is refused.

    Args:
        status: Int, the HTTP status.
        message: String, for whoever sent the request.
        **headers: Strings, the headers of the answer, with `_` for `-`.
    """

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
