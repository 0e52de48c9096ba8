"""Jobs for schedulers: one function per scheduler, from flags to the job file."""
