"""Training with parameters, gradients and optimizer state divided among the processes (FSDP)."""

import os
from collections.abc import Callable
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.runner import save_checkpoint
from torch.distributed.fsdp import FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from mmlska.registry import STRATEGIES

# In the folder of a checkpoint, beside the parts of the processes.
WHOLE_WEIGHTS = 'weights.pth'


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy``, which saves plain weights too and can go on from what it saved.

    A checkpoint is a folder: ``rank0.pth``, ``rank1.pth``, ... to go on from, by as many processes,
    and ``weights.pth`` for everything else: the weights of the whole model.

    mmengine's own hands the arguments of ``FSDP.optim_state_dict_to_load`` over in the order of an
    older PyTorch and cannot resume; its ``state_dict_cfg='full'`` ends in a segmentation fault on a
    CPU, and without the offloading that causes it PyTorch gathers a wrong optimizer state there.

    Args:
        model_wrapper (dict, optional): As that of ``FSDPStrategy``. Defaults to None. Without a
            GPU ``device_id`` is the CPU, and ``use_orig_params`` is True unless it is given: the
            optimizer constructors of mmengine look at the parameters of the model.
        **kwargs: As those of ``FSDPStrategy``, but for ``state_dict_cfg``.

    Raises:
        TypeError: If ``state_dict_cfg`` is given.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        if 'state_dict_cfg' in kwargs:
            raise TypeError('ShardedStrategy takes no state_dict_cfg: it saves parts and the whole')
        defaults = dict(type='MMFullyShardedDataParallel', use_orig_params=True)
        if not torch.cuda.is_available():
            defaults['device_id'] = torch.device('cpu')
        super().__init__(model_wrapper={**defaults, **(model_wrapper or {})}, **kwargs)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable | None = None,
    ) -> None:
        """Save the part of this process, and from the first one the weights of the whole model."""
        super().save_checkpoint(
            filename,
            save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler,
            extra_ckpt=extra_ckpt,
            callback=callback,
        )
        whole = FullStateDictConfig(
            rank0_only=True, offload_to_cpu=self.model.compute_device.type != 'cpu'
        )
        with FSDP.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, whole):
            weights = self.model.state_dict()
        if is_main_process():
            meta = (extra_ckpt or {}).get('meta', {})
            # By its error a full disk is known.
            save_checkpoint(
                dict(state_dict=weights, meta=meta), os.path.join(filename, WHOLE_WEIGHTS)
            )

    def optim_state_dict(self) -> dict:
        """State of the optimizer, that of this process."""
        return FSDP.optim_state_dict(self.model, self.optim_wrapper.optimizer)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Take the state of the optimizer of this process."""
        state = FSDP.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=state_dict,
        )
        self.optim_wrapper.load_state_dict(state)
