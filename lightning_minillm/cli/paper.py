"""The paper's matrix of sizes and methods (``conf/paper``)."""

from __future__ import annotations

from omegaconf import DictConfig

# The node with a size's values. The files of conf/paper/method refer to them, and no command reads them itself.
PAPER = "paper"


def check_paper(cfg: DictConfig) -> DictConfig:
    """Return a composed configuration unchanged, if it asks for a cell of the matrix or for none.

    Raises:
        ValueError: a size without a method or the reverse, or a method that the paper did not run at that size.
    """
    cell = cfg.get(PAPER) or {"size": None, "method": None}
    size, method = cell["size"], cell["method"]
    if size is None and method is None:
        return cfg
    if size is None:
        raise ValueError(f"paper/method={method} needs a size, such as paper/size=gpt2_120m")
    if method not in cell["methods"]:
        fault = "needs a method" if method is None else f"has no method {method!r}"
        raise ValueError(f"paper/size={size} {fault}; choose paper/method={'|'.join(cell['methods'])}")
    return cfg
