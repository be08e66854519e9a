"""Small trained models that come with the package, see :mod:`mmlska.checkpoint.own_models`."""
