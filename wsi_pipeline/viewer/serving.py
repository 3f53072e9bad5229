"""How the server ends: pages that listen for changes are let go first, so that nothing is broken off."""

import socket

import uvicorn
from fastapi import FastAPI


class PageServer(uvicorn.Server):
    """uvicorn, for an application of `make_app`."""

    def __init__(self, app: FastAPI, config: uvicorn.Config):
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what listens, then the rest."""
        self._app.state.stopping.set()
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C, after which uvicorn leaves the application as it is
            await self.lifespan.shutdown()
