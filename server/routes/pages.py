"""The playground: the page at ``/``, and the files that it loads."""

import os
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.staticfiles import NotModifiedResponse, PathLike, StaticFiles
from starlette.types import Scope

from infalign.files import hash_file

PAGE = "index.html"
FOLDER = Path(__file__).parent / "playground"
FILES = "/playground"
"""Path of the files. The page names them by relative addresses, so that it works behind a prefix too."""

router = APIRouter(include_in_schema=False)


class PlaygroundFiles(StaticFiles):
    """Static files that browsers keep, and ask for anew with their ETag each time, so that none is out of date.

    The ETag is a hash of the content. Times would not do: packages may set the same for the files of all versions.
    """

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 if the browser has it."""
        response = FileResponse(full_path, status_code, stat_result=stat_result)
        response.headers["ETag"] = f'"{hash_file(Path(full_path))}"'
        response.headers["Cache-Control"] = "no-cache"
        del response.headers["Last-Modified"]
        has_it = self.is_not_modified(response.headers, Headers(scope=scope))
        return NotModifiedResponse(response.headers) if has_it else response


files = PlaygroundFiles(directory=FOLDER)


@router.get("/")
async def playground(request: Request) -> Response:
    """Return the page."""
    return await files.get_response(PAGE, request.scope)


def add_playground(app: FastAPI) -> None:
    """Add the page and its files to an application."""
    app.include_router(router)
    app.mount(FILES, files, name="playground")
