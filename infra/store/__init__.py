"""Content-addressed artifact store on a local folder or in S3."""
