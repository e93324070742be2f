//! Objects in the order in which they came, found by id and by customer without looking at all of them: tests keep
//! thousands of customers, and ask for the subscriptions of each.

use std::collections::HashMap;

/// What can stand on a shelf.
pub trait Kept {
    /// What Stripe calls it in `No such …`.
    const NOUN: &'static str;

    fn id(&self) -> &str;

    /// Whose it is, from its beginning to its end; `None` where that can change.
    fn owner(&self) -> Option<&str> {
        None
    }
}

/// Nothing leaves a shelf: what is deleted says so itself, so that the place of a page's last object stays known.
#[derive(Clone, Debug)]
pub struct Shelf<T> {
    kept: Vec<T>,
    by_id: HashMap<String, usize>,
    by_owner: HashMap<String, Vec<usize>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), by_id: HashMap::new(), by_owner: HashMap::new() }
    }
}

impl<T: Kept> Shelf<T> {
    /// Adds at the end; an object of the same id is replaced, in its place.
    pub fn add(&mut self, object: T) {
        if let Some(known) = self.get_mut(object.id()) {
            *known = object;
            return;
        }
        let place = self.kept.len();
        self.by_id.insert(object.id().to_owned(), place);
        if let Some(owner) = object.owner() {
            self.by_owner.entry(owner.to_owned()).or_default().push(place);
        }
        self.kept.push(object);
    }

    pub fn get(&self, id: &str) -> Option<&T> {
        self.kept.get(self.place(id)?)
    }

    pub fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        let place = self.place(id)?;
        self.kept.get_mut(place)
    }

    pub fn at(&self, place: usize) -> Option<&T> {
        self.kept.get(place)
    }

    /// Where it stands; the later it came, the higher.
    pub fn place(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// With their places, the newest first, as Stripe lists everything.
    pub fn newest_first(&self) -> impl Iterator<Item = (usize, &T)> {
        self.kept.iter().enumerate().rev()
    }

    /// Those of one customer, or all.
    pub fn of(&self, owner: Option<&str>) -> Vec<(usize, &T)> {
        let Some(owner) = owner else { return self.newest_first().collect() };
        let places = self.by_owner.get(owner).into_iter().flatten().rev();
        places.filter_map(|place| Some((*place, self.kept.get(*place)?))).collect()
    }
}
