from .conv_ffn import ConvFFN
from .large_kernel_attention import LKA, LSKA, LKATrivial, LSKATrivial, decompose_kernel

__all__ = ['LKA', 'LSKA', 'ConvFFN', 'LKATrivial', 'LSKATrivial', 'decompose_kernel']
