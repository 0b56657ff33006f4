"""LSI 53C895A and 53C810: SCSI controllers with a processor of their own, which runs the driver's SCRIPTS."""
