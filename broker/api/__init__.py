"""The HTTP side. `app` is the application; the other modules are what routers of every domain are made with.

security      who asks, and `requires(Permission.X)`: what a route asks for
parameters    query parameters that a route does not know
problems      errors as problem+json (RFC 9457)
pagination    cursors
idempotency   `Idempotency-Key`
conditional   `ETag`, `If-Match`, `If-None-Match`
middleware    request ids, limits, log and metrics of each request
"""
