"""SCSI as the specifications write it: codes, command descriptor blocks, sense data, pages. No behaviour.

Ref: SAM-5 (architecture), SPC-4 (every device), SBC-3 (disks), MMC-6 (CD-ROM).
"""
