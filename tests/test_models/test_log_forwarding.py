import logging

from mmengine.logging import MMLogger

from mmlska.models.log_forwarding import ForwardToMMEngine, forward_logs


def test_what_operations_say_is_in_the_log_file_of_a_run(tmp_path):
    file = tmp_path / 'run.log'
    MMLogger.get_instance('a run of its own', log_file=str(file))
    logging.getLogger('mmlska').warning('the backend %r cannot run', 'cpu')
    logging.getLogger('mmlska').debug('nobody asked for this')
    text = file.read_text()
    assert "WARNING - the backend 'cpu' cannot run" in text
    assert 'nobody asked' not in text


def test_it_is_said_once():
    forward_logs()
    handlers = logging.getLogger('mmlska').handlers
    assert sum(isinstance(handler, ForwardToMMEngine) for handler in handlers) == 1
