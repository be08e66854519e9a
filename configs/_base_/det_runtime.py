_base_ = ['mmdet::_base_/default_runtime.py', './checks.py']

default_hooks = dict(**_base_.checks, **_base_.saving)
