"""The playground: the page at ``/``, and the files that it loads."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

PAGE = "index.html"
FOLDER = Path(__file__).parent / "playground"
FILES = "/playground"
"""Path of the files. The page names them by relative addresses, so that it works behind a prefix too."""

router = APIRouter(include_in_schema=False)


class PlaygroundFiles(StaticFiles):
    """Static files that browsers keep, and ask for anew with their ETag each time, so that none is out of date."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """Return a file, or 304 if the browser has it."""
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


files = PlaygroundFiles(directory=FOLDER)


@router.get("/")
async def playground(request: Request) -> Response:
    """Return the page."""
    return await files.get_response(PAGE, request.scope)


def add_playground(app: FastAPI) -> None:
    """Add the page and its files to an application."""
    app.include_router(router)
    app.mount(FILES, files, name="playground")
