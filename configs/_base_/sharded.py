# Divides parameters, gradients and optimizer state among the processes (FSDP); a base beside any
# recipe. docs/training_options.md tells what is saved.
runner_type = 'FlexibleRunner'
strategy = dict(type='mmlska.ShardedStrategy')
