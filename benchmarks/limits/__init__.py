"""How near training, sampling and weight sync come to what the machine can do: `make bench`."""
