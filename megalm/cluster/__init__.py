"""Training as jobs of a cluster, through submitit: SLURM's, or processes of this machine that outlive the command."""
