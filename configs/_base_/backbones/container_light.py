# What all tasks share; the drop path is that of the authors' ImageNet recipe. There is no init_cfg,
# for no address holds their weights that a script could fetch: the README tells how to give a file.
container_light_defaults = dict(type='mmlska.ContainerLight', arch='light', drop_path_rate=0.1)
