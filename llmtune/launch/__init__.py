"""Jobs for schedulers, as text: a function a scheduler, from flags to the file that it takes."""
