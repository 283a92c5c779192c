"""What stages that train share: Hugging Face Trainers, processes, demonstrations, optimizers, loss scaling."""
