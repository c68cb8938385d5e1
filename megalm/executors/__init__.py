"""Where the tasks of large jobs on data run: processes of this machine, SLURM or Ray; shared by corpora and token files."""
