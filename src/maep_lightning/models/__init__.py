"""Networks: masked autoencoder, purifier, LoRA, classifiers and the defended classifier. No Lightning."""
