"""Decontamination: documents that hold items of benchmarks are removed, cut or marked."""
