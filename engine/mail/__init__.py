"""Mail content: header fields and the Received field. Pure: bytes in, bytes out, no clock."""
