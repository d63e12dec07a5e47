"""One GPU: speed of training (`benchmarks.gpu`), and roles on Ray (`benchmarks.gpu.cluster`)."""
