"""What ``mmlska.ops`` and ``mmlska.layers``, which know no mmengine, say in the log of a run."""

import logging

from mmengine.logging import print_log


class ForwardToMMEngine(logging.Handler):
    """Hands records on to mmengine's current logger, and so into the log file of a run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as mmengine writes its own."""
        print_log(self.format(record), 'current', record.levelno)


def forward_logs() -> None:
    """Let what the logger ``mmlska`` is told appear in mmengine's log; once is enough."""
    logger = logging.getLogger('mmlska')
    if not any(isinstance(handler, ForwardToMMEngine) for handler in logger.handlers):
        logger.addHandler(ForwardToMMEngine())
