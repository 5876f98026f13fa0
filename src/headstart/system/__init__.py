"""What the machine and the user give: folders, files, locks, processes, confinement, settings."""
