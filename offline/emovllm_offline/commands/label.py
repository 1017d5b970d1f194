"""`emovllm label`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le
from cyclopts import Parameter

from emovllm.options import COMMAS, FLAT, QUIET, Options
from emovllm_offline.judges.sentences import LABELS


@dataclass(frozen=True)
class LabelOptions(Options):
    texts: Annotated[
        tuple[Path, ...],
        Parameter(help="JSON lines with `text` or `reply`, as elicit and evaluate write them", metavar="FILE"),
    ]
    _: KW_ONLY
    out: Annotated[Path, Parameter(help="file of the labels: JSON lines {text, label, register}", metavar="FILE")]
    labels: Annotated[tuple[str, ...], COMMAS, Parameter(help="those to choose from", metavar="NAME,...")] = LABELS
    beside: Annotated[
        Path | None, Parameter(help="another pass over the texts: how far both agree is told", metavar="FILE")
    ] = None
    limit: Annotated[int | None, Gt(0), Parameter(help="label only N texts", metavar="N")] = None
    seed: Annotated[int, Ge(0), Parameter(help="of the order of the texts", metavar="N")] = 0
    port: Annotated[int, Ge(0), Le(65535), Parameter(help="0 for any that is free", metavar="N")] = 0
    no_browser: Annotated[bool, QUIET, Parameter(help="do not open the page in a browser")] = False

    @property
    def resumes_from(self) -> Path:
        return self.out


def main(options: Annotated[LabelOptions, FLAT]) -> None:
    """Label texts by hand, one at a time and blind to how they were made, by a key or a click on a page that this
    machine alone can open. Each label is kept at once: end with Ctrl+C, and go on with the same command.
    """
    import webbrowser

    from emovllm_offline.labelling.page import serve
    from emovllm_offline.labelling.texts import Labelling, compare, read_texts

    labelling = Labelling(
        read_texts(options.texts), options.labels, options.out, limit=options.limit, seed=options.seed
    )
    if labelling.next() is not None:
        server = serve(labelling, options.port)
        address = f"http://{server.server_address[0]!s}:{server.server_address[1]}/"
        print(f"label {labelling.total - labelling.done} texts at {address}, and end with Ctrl+C", flush=True)
        if not options.no_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
    print(f"{options.out}: {labelling.done} of {labelling.total} texts are labelled")
    if options.beside is not None:
        agreement = compare(options.out, options.beside)
        kappa = "undefined" if agreement.kappa is None else f"{agreement.kappa:.2f}"
        print(f"agreement with {options.beside}: {agreement.equal:.0%} of {agreement.texts} texts, kappa {kappa}")
