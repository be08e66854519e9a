# As for RTMDet: the pyramid of a YOLOX has three levels too, of the same channels from tiny to x.
_base_ = './rtmdet.py'
