"""What the runner of mmengine writes, it can go on from: schedulers, wrappers, all metainfo."""

import collections
import datetime
import itertools
import pathlib

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim import scheduler as schedulers
from mmengine.runner import Runner
from routes import needs_safe_globals
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec

from mmlska.checkpoint import load_from_local, read_checkpoint
from mmlska.models import VAN

pytestmark = needs_safe_globals

ARCH = dict(embed_dims=[4], depths=[1], ffn_ratios=[1])
# The arguments that the schedulers of each kind need.
ARGUMENTS = {
    'OneCycle': dict(eta_max=0.1, total_steps=4),
    'CosineAnnealing': dict(T_max=4),
    'CosineRestart': dict(periods=[2, 2], restart_weights=[1, 0.5], eta_min=0),
    'Exponential': dict(gamma=0.9),
    'MultiStep': dict(milestones=[1, 3]),
    'Poly': dict(power=0.9),
    'ReduceOnPlateau': dict(monitor='loss', by_epoch=True),
    'Step': dict(step_size=2),
}
SCHEDULERS = sorted(name for name in schedulers.__all__ if not name.startswith('_'))


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = VAN(ARCH, dict(type='LSKA', kernel_size=3, dilation=1), out_indices=0)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.backbone(torch.stack(list(inputs)))[0].square().mean())


class Data(torch.utils.data.Dataset):
    metainfo = {}

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return dict(inputs=torch.full((3, 8, 8), float(i)))


def train(folder, iterations, resume=False, metainfo=None, wrapper=None, scheduler=None, model=Toy):
    data, model = Data(), model()
    data.metainfo = metainfo or {}
    wrapper = wrapper(model) if callable(wrapper) else wrapper
    runner = Runner(
        model=model,
        work_dir=str(folder),
        resume=resume,
        log_level='ERROR',
        experiment_name=f'{folder.name}_{iterations}',
        default_scope='mmengine',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=data,
                              sampler=dict(type='InfiniteSampler', shuffle=False)),
        optim_wrapper=wrapper or dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=scheduler,
    )  # fmt: skip
    runner.train()
    return runner


def check_resumes(folder, **options):
    train(folder, 2, **options)
    runner = train(folder, 4, resume=True, **options)
    assert runner.iter == 4
    read = read_checkpoint(folder / 'iter_4.pth')
    assert read['meta']['iter'] == 4
    return read


@pytest.mark.parametrize('name', SCHEDULERS)
def test_every_scheduler_resumes(name, tmp_path):
    kind = next((kind for kind in ARGUMENTS if name.startswith(kind)), None)
    options = dict(by_epoch=False) | ARGUMENTS.get(kind, {})
    if name.endswith('ParamScheduler'):
        options['param_name'] = 'lr'
    read = check_resumes(tmp_path, scheduler=dict(type=name, **options))
    assert len(read['param_schedulers']) == 1


@pytest.mark.parametrize('optimizer', ['SGD', 'Adam', 'AdamW', 'RMSprop', 'Adagrad'])
def test_every_optimizer_resumes(optimizer, tmp_path):
    momentum = dict(momentum=0.9) if optimizer == 'SGD' else {}
    wrapper = dict(
        type='OptimWrapper',
        accumulative_counts=2,
        clip_grad=dict(max_norm=1),
        optimizer=dict(type=optimizer, lr=1e-3, **momentum),
    )
    assert check_resumes(tmp_path, wrapper=wrapper)['optimizer']['state']


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_the_scale_of_mixed_precision_resumes(dtype, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip('AmpOptimWrapper of mmengine needs an accelerator')
    wrapper = dict(type='AmpOptimWrapper', dtype=dtype, optimizer=dict(type='SGD', lr=1e-3))
    assert 'loss_scaler' in check_resumes(tmp_path, wrapper=wrapper)['optimizer']


class TwoPhases(Toy):
    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        for wrapper in optim_wrapper.values():
            wrapper.update_params(self(**data, mode='loss')['loss'])
        return {}


def test_several_optimizers_resume(tmp_path):
    def wrappers(model):
        parts = dict(stem=model.backbone.patch_embed1, rest=model.backbone.blocks1)
        return OptimWrapperDict(
            **{
                name: OptimWrapper(torch.optim.Adam(part.parameters(), 0.01))
                for name, part in parts.items()
            }
        )

    scheduler = {
        name: [dict(type='OneCycleLR', eta_max=0.1, total_steps=4, by_epoch=False)]
        for name in ('stem', 'rest')
    }
    read = check_resumes(tmp_path, model=TwoPhases, wrapper=wrappers, scheduler=scheduler)
    assert set(read['optimizer']) == set(read['param_schedulers']) == {'stem', 'rest'}


METAINFO = dict(
    classes=('screw', 'nut'),
    nested=dict(screw=dict(thread='M4')),
    config=ConfigDict(a=dict(b=[1, 2])),
    made=datetime.datetime(2026, 11, 25, tzinfo=datetime.timezone.utc),
    took=datetime.timedelta(seconds=3),
    counts=collections.defaultdict(list, a=[1]),
    last=collections.deque([1, 2], maxlen=3),
    names=frozenset(['screw']),
    more={'nut'},
    root=pathlib.Path('data/coco'),
    windows=pathlib.PureWindowsPath('data/coco'),
    palette=np.arange(6, dtype=np.uint8).reshape(2, 3),
    fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    words=np.array(['screw', 'nut']),
    scale=np.float32(0.5),
    flag=np.bool_(True),
    word=np.str_('nut'),
    empty=np.zeros((0, 3)),
    ordered=collections.OrderedDict(a=1),
    counted=collections.Counter('aab'),
    part=slice(1, 2),
    ids=range(3),
    number=1j,
)
PLAIN = dict(counts={'a': [1]}, last=[1, 2], root=pathlib.PurePosixPath('data/coco'))


def test_all_metainfo_of_plain_data_resumes(tmp_path):
    read = check_resumes(tmp_path, metainfo=METAINFO)['meta']['dataset_meta']
    assert set(read) == set(METAINFO)
    for key, value in {**METAINFO, **PLAIN}.items():
        assert np.array_equal(read[key], value), key


def test_arrays_are_written_again_like_any_other(tmp_path):
    torch.save({'a': np.arange(3)}, tmp_path / 'a.pth')
    torch.save(read_checkpoint(tmp_path / 'a.pth'), tmp_path / 'b.pth')
    torch.save({'a': np.arange(3)}, tmp_path / 'c.pth')
    first, second = ((tmp_path / f'{name}.pth').read_bytes() for name in 'bc')
    assert b'_Array' not in first
    assert len(first) == len(second)


@pytest.mark.parametrize(('big', 'kind'), itertools.product([False, True], ['f4', 'i8', 'U3']))
def test_numpy_types_keep_their_order_of_bytes(big, kind, tmp_path):
    array = np.array([1, 2, 3]).astype(('>' if big else '<') + kind)
    torch.save({'a': array, 's': array[1]}, tmp_path / 'a.pth')
    read = read_checkpoint(tmp_path / 'a.pth')
    assert np.array_equal(read['a'], array)
    assert read['s'] == array[1]


def test_a_config_text_is_dropped_before_mmengine_runs_it(tmp_path):
    train(tmp_path, 2)
    checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    mark = tmp_path / 'ran'
    checkpoint['meta']['config'] = f'open({str(mark)!r}, "w").close()'
    torch.save(checkpoint, tmp_path / 'iter_2.pth')
    assert train(tmp_path, 4, resume=True).iter == 4
    assert not mark.exists()
    assert 'config' not in load_from_local(str(tmp_path / 'iter_2.pth'))['meta']


def test_a_part_of_sharded_training_is_read(tmp_path):
    dist.init_process_group('gloo', f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        spec = ChunkShardingSpec(dim=0, placements=['rank:0/cpu'])
        part = sharded_tensor.rand(spec, 4, 3)
        torch.save(dict(state_dict=dict(weight=part)), tmp_path / 'rank0.pth')
        found = read_checkpoint(tmp_path / 'rank0.pth')['state_dict']['weight']
    finally:
        dist.destroy_process_group()
    assert torch.equal(found.local_tensor(), part.local_tensor())
    assert found.metadata() == part.metadata()
