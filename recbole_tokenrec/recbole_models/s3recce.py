from recbole_tokenrec.models.s3rec_ce import S3RecCE

__all__ = ["S3RecCE"]
