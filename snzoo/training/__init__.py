"""Train and finetune networks: recipes as data, restartable, on one device or many."""
