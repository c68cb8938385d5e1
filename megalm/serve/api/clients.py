"""What addresses find out about a request before they look at its body."""

from fastapi import Request

from megalm.serve.service import Client, Service


def service_of(request: Request) -> Service:
    """The server's state."""
    service: Service = request.app.state.service
    return service


def client_of(request: Request) -> Client:
    """Who asks; the request is counted. Raises ApiError: nobody's key, too much lately, the server ends."""
    service = service_of(request)
    client = service.client_of(request.headers.get("authorization"))
    request.state.client = client.name
    service.begin(client)
    return client


def known(request: Request) -> None:
    """Let a request pass that costs nothing, without counting it. Raises ApiError: nobody's key."""
    service_of(request).client_of(request.headers.get("authorization"))
