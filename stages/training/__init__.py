"""Shared by training stages: Hugging Face Trainers, processes, demonstrations, optimizers, loss scaling."""
