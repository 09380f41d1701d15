"""The function of a deployed stack that copies versions of a model from S3 to EFS and switches between them.

Imports boto3, which Lambda's runtime brings, orjson through artifact.manifest, and the standard library.
"""
