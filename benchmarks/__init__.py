"""Accuracy, speed and memory of sortcore and of its peers on recordings whose spikes are known. See README.md."""
